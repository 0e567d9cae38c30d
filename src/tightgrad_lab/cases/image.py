"""Image classification: Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747), 600 + 100 images of 10 classes.

The model is a small residual network (He et al. 2016, arXiv:1512.03385) with group instead of batch normalisation
(Wu and He 2018, arXiv:1803.08494): its gradient does not depend on how a batch is cut into micro-batches.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad_lab.training.case import Batch, Case, Example, Scores, Settings

DATA = "fashion_mnist_6k.npz"
NAMES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CLASSES = len(NAMES)
WIDTHS = (16, 32, 64, 128)
CHANNELS_PER_GROUP = 8


@dataclass(frozen=True)
class Images:
    """Grey images.

    Attributes:
        pixels: uint8, shape (n, 28, 28).
        labels: int64, shape (n,), 0 to 9.
        mean: of the training pixels, in 0 to 1.
        std: of the training pixels.
    """

    pixels: Tensor
    labels: Tensor
    mean: float
    std: float

    def __len__(self) -> int:
        return len(self.labels)


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = _norm(channels_out)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.around = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Shape (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        inside = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(inside)) + self.around(features))


class ResNet(nn.Module):
    """One block a width; the first convolution and every block but the first halve height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTHS[0], 3, stride=2, padding=1, bias=False), _norm(WIDTHS[0]))
        widths = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.Sequential(
            *(Block(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(len(WIDTHS)))
        )
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Shape (n, 1, 28, 28) to class scores of shape (n, 10)."""
        features = self.blocks(functional.relu(self.stem(images)))
        scores: Tensor = self.head(features.mean(dim=(2, 3)))
        return scores


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


@cache
def _load() -> tuple[Images, Images]:
    with as_file(files("tightgrad_lab") / "data" / DATA) as path, np.load(path) as arrays:
        pixels = torch.from_numpy(arrays["train_images"])
        scaled = pixels.double() / 255
        mean, std = float(scaled.mean()), float(scaled.std())
        return (
            Images(pixels, torch.from_numpy(arrays["train_labels"]).long(), mean, std),
            Images(torch.from_numpy(arrays["test_images"]), torch.from_numpy(arrays["test_labels"]).long(), mean, std),
        )


class ImageCase(Case[Images]):
    """Ten kinds of clothes."""

    id: ClassVar[str] = "image"
    metric: ClassVar[str] = "accuracy"

    def settings(self, *, full: bool) -> Settings:
        """SGD with momentum."""
        return Settings(
            epochs=20 if full else 10,
            seeds=3 if full else 1,
            batch_size=128,
            micro_batches=4,
            learning_rate=0.1,
            warmup_fraction=0.1,
            momentum=0.9,
            weight_decay=5e-4,
            clip=tg.clip.GlobalNorm(2.0),
            compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()),
            variant="fashion-mnist-6k",
        )

    def load(self) -> tuple[Images, Images]:
        """6000 and 1000 images."""
        return _load()

    def model(self) -> nn.Module:
        """A fresh network."""
        return ResNet()

    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(
            model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )

    def batch(self, samples: Images, indices: Tensor) -> Batch:
        """Standardised images of shape (n, 1, 28, 28), and labels."""
        images = (samples.pixels[indices].float() / 255 - samples.mean) / samples.std
        return images.unsqueeze(1), samples.labels[indices]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def count(self, model: nn.Module, batch: Batch, samples: Images, indices: Tensor) -> Tensor:
        """Right answers, and answers."""
        images, labels = batch
        right = (model(images).argmax(dim=1) == labels).sum()
        return torch.stack([right, torch.full_like(right, len(labels))]).double()

    def scores(self, statistics: Tensor) -> Scores:
        """Share of right answers."""
        right, answers = statistics.tolist()
        return {"accuracy": right / answers}

    def baselines(self) -> dict[str, Scores]:
        """The class whose mean training image is nearest."""
        train, test = self.load()
        images, labels = self.batch(train, torch.arange(len(train)))
        means = torch.stack([images[labels == label].mean(0) for label in range(CLASSES)]).flatten(1)
        images, labels = self.batch(test, torch.arange(len(test)))
        nearest = torch.cdist(images.flatten(1), means).argmin(1)
        return {"nearest_mean": {"accuracy": float((nearest == labels).double().mean())}}

    @torch.no_grad()
    def examples(self, model: nn.Module, indices: Tensor) -> list[Example]:
        """The number of the image, its class and the model's."""
        _, test = self.load()
        images, labels = self.batch(test, indices)
        answers = model(images).argmax(dim=1)
        return [
            Example(f"test image {int(i)}", NAMES[int(label)], NAMES[int(answer)])
            for i, label, answer in zip(indices, labels, answers, strict=True)
        ]


VARIANTS = {"fashion-mnist-6k": ImageCase()}
FULL: tuple[str, ...] = ()
