"""Image classification: Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) and CIFAR-10 (Krizhevsky 2009)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad_lab.cases.image.data import CLASSES, Images, cifar, fashion, fashion_6k
from tightgrad_lab.cases.image.models import ResNet, ResNet20
from tightgrad_lab.training.case import Batch, Case, Example, Scores, Settings

BASELINE_BATCH = 1000


@dataclass(frozen=True)
class ImageCase(Case[Images]):
    """Ten kinds of things.

    Args:
        read: gives training and test images.
        network: makes a fresh model.
        epochs: passes over the training images.
        variant: its name.
    """

    id: ClassVar[str] = "image"
    metric: ClassVar[str] = "accuracy"

    read: Callable[[], tuple[Images, Images]] = fashion_6k
    network: Callable[[], nn.Module] = ResNet
    epochs: int = 4
    variant: str = "fashion-mnist-6k"

    def settings(self, *, full: bool) -> Settings:
        """SGD with momentum."""
        return Settings(
            epochs=self.epochs,
            seeds=3 if full else 1,
            batch_size=128,
            micro_batches=4,
            learning_rate=0.1,
            warmup_fraction=0.1,
            momentum=0.9,
            weight_decay=5e-4,
            clip=tg.clip.GlobalNorm(2.0),
            compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()),
            variant=self.variant,
        )

    def load(self) -> tuple[Images, Images]:
        """Training and test images."""
        return self.read()

    def placed(self, samples: Images, device: torch.device) -> Images:
        """All images on the device, which takes a batch of them in a fraction of the CPU's time."""
        return samples.to(device)

    def model(self) -> nn.Module:
        """A fresh network."""
        return self.network()

    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(
            model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )

    def batch(self, samples: Images, indices: Tensor) -> Batch:
        """Standardised images of shape (n, channels, h, w), and labels."""
        indices = indices.to(samples.labels.device)
        return samples.standardised(indices), samples.labels[indices]

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
        """The class whose mean training image is nearest, and always the same class."""
        train, test = self.load()
        sums = torch.zeros(CLASSES, train.pixels[0].numel(), dtype=torch.float64)
        for indices in torch.arange(len(train)).split(BASELINE_BATCH):
            sums.index_add_(0, train.labels[indices], train.pixels[indices].flatten(1).double())
        means = (sums / train.labels.bincount(minlength=CLASSES).unsqueeze(1)).float()
        right = 0
        for indices in torch.arange(len(test)).split(BASELINE_BATCH):
            nearest = torch.cdist(test.pixels[indices].flatten(1).float(), means).argmin(1)
            right += int((nearest == test.labels[indices]).sum())
        frequent = int(train.labels.bincount(minlength=CLASSES).argmax())
        return {
            "nearest_mean": {"accuracy": right / len(test)},
            "majority": {"accuracy": float((test.labels == frequent).double().mean())},
        }

    @torch.no_grad()
    def examples(self, model: nn.Module, indices: Tensor) -> list[Example]:
        """The number of the image, its class and the model's."""
        _, test = self.load()
        images, labels = self.batch(test, indices)
        answers = model(images).argmax(dim=1)
        return [
            Example(f"test image {int(i)}", test.names[int(label)], test.names[int(answer)])
            for i, label, answer in zip(indices, labels, answers, strict=True)
        ]


VARIANTS = {
    "fashion-mnist-6k": ImageCase(),
    "cifar10-resnet20": ImageCase(cifar, ResNet20, 50, "cifar10-resnet20"),
    "fashion-mnist": ImageCase(fashion, ResNet, 20, "fashion-mnist"),
}
FULL = ("cifar10-resnet20", "fashion-mnist")
