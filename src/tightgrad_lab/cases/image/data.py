"""Labelled images: the embedded part of Fashion-MNIST, and whole data sets that are fetched."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tightgrad_lab.fetch import need

DATA = "fashion_mnist_6k.npz"
CLOTHES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES = len(CLOTHES)
CROP_PADDING = 4


@dataclass(frozen=True)
class Images:
    """Images of one size.

    Attributes:
        pixels: uint8, shape (n, h, w) or (n, h, w, 3).
        labels: int64, shape (n,), 0 to 9.
        mean: of the training pixels, in 0 to 1; one, or one a colour.
        std: of the training pixels.
        names: of the labels.
        moved: whether a batch is shifted and mirrored at random, as training images of CIFAR-10 are.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    names: tuple[str, ...] = CLOTHES
    moved: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Images":
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "labels", "mean", "std")}
        return replace(self, **moved)

    def standardised(self, indices: Tensor) -> Tensor:
        """Float images of shape (n, channels, h, w)."""
        images = (self.pixels[indices].float() / 255 - self.mean) / self.std
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        return _moved(images) if self.moved else images


def _moved(images: Tensor) -> Tensor:
    """Each shifted by up to 4 pixels, zeros coming in, and half of them mirrored (He et al. 2016, section 4.2)."""
    count, _, height, width = images.shape
    device = images.device
    padded = functional.pad(images, (CROP_PADDING,) * 4)
    across, down = torch.randint(2 * CROP_PADDING + 1, (2, count, 1), device=device)
    columns = across + torch.arange(width, device=device)
    columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
    rows = down + torch.arange(height, device=device)
    first = torch.arange(count, device=device)[:, None, None]
    return padded[first, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _parts(arrays: Mapping[str, Tensor], names: tuple[str, ...], *, moved: bool) -> tuple[Images, Images]:
    pixels = arrays["train_images"]
    colours = pixels.unsqueeze(-1) if pixels.dim() == 3 else pixels
    moments = torch.stack([_moments(colours[..., c]) for c in range(colours.shape[-1])]).T.float()
    mean, std = moments if pixels.dim() == 4 else moments[:, 0]
    return (
        Images(pixels, arrays["train_labels"].long(), mean, std, names, moved),
        Images(arrays["test_images"], arrays["test_labels"].long(), mean, std, names),
    )


def _moments(pixels: Tensor) -> Tensor:
    """Mean and standard deviation of uint8 values, scaled to 0 to 1: float64, shape (2,)."""
    counts = pixels.flatten().bincount(minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum() / counts.sum()
    return torch.stack([mean, ((counts * (values - mean).square()).sum() / (counts.sum() - 1)).sqrt()])


@cache
def fashion_6k() -> tuple[Images, Images]:
    """The embedded images: 6,000 and 1,000."""
    with as_file(files("tightgrad_lab") / "data" / DATA) as path, np.load(path) as arrays:
        return _parts({name: torch.from_numpy(arrays[name]) for name in arrays.files}, CLOTHES, moved=False)


def _fetched(name: str) -> dict[str, Tensor]:
    folder = need(name)
    return {path.stem: torch.from_numpy(np.load(path, allow_pickle=False)) for path in folder.glob("*.npy")}


@cache
def fashion() -> tuple[Images, Images]:
    """The whole of Fashion-MNIST: 60,000 and 10,000."""
    return _parts(_fetched("fashion-mnist"), CLOTHES, moved=False)


@cache
def cifar() -> tuple[Images, Images]:
    """CIFAR-10: 50,000, shifted and mirrored, and 10,000."""
    return _parts(_fetched("cifar10"), THINGS, moved=True)
