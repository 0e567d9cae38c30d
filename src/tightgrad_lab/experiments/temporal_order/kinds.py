"""Kinds of networks on real data under plain SGD with momentum, from a careful learning rate to a bold one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad_lab.cases.image import CLASSES, ImageCase
from tightgrad_lab.common import byte_model

MOMENTUM = 0.9
HIDDEN = 128
KINDS = ("rnn", "lstm", "transformer", "cnn")


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        kind: of KINDS.
        learning_rate: of SGD.
        seed: of weights and batches.
        max_norm: of the gradient; None clips nothing.
        steps: of training.
        batch_size: pieces of text, or images, of a step.
    """

    kind: str
    learning_rate: float
    seed: int
    max_norm: float | None
    steps: int
    batch_size: int


class ByteRecurrent(nn.Module):
    """A recurrent layer that predicts the next byte."""

    def __init__(self, layer: type[nn.RNN] | type[nn.LSTM]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(byte_model.BYTES, HIDDEN // 2)
        self.recurrent: nn.RNNBase = layer(HIDDEN // 2, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, byte_model.BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """int64 of shape (n, length) to scores of the next byte, shape (n, length, 256)."""
        states, _ = self.recurrent(self.embedding(text))
        scores: Tensor = self.head(states)
        return scores


class PlainCNN(nn.Module):
    """Four convolutions without normalisation and without a way around them."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 32, 32)
        layers: list[nn.Module] = []
        for place in range(4):
            layers += [nn.Conv2d(widths[place], widths[place + 1], 3, stride=2, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1] * 4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Shape (n, 1, 28, 28) to class scores of shape (n, 10)."""
        scores: Tensor = self.head(self.features(images).flatten(1))
        return scores


def make_model(kind: str) -> nn.Module:
    """A fresh network, drawn from torch's global generator."""
    match kind:
        case "rnn":
            return ByteRecurrent(nn.RNN)
        case "lstm":
            return ByteRecurrent(nn.LSTM)
        case "transformer":
            return byte_model.ByteTransformer(width=HIDDEN, layers=2)
        case _:
            return PlainCNN()


def train(run: Run) -> dict[str, Any]:
    """Train.

    Returns:
        "largest_norm" of the gradient before clipping, as long as it was finite; "diverged": the gradient was not
        finite, or the mean loss of the last tenth is above the first loss; "loss": that mean, None if not finite;
        "clip_rate": share of steps that were clipped.
    """
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    model = make_model(run.kind)
    loss_of = _image_loss if run.kind == "cnn" else byte_model.loss
    draw = _images if run.kind == "cnn" else byte_model.batch
    optimizer = torch.optim.SGD(model.parameters(), run.learning_rate, MOMENTUM)
    clip = None if run.max_norm is None else tg.clip.GlobalNorm(run.max_norm)
    pipe = tg.attach(model, optimizer, tg.Plan(clip=clip, guard=tg.Guard("propagate")))
    losses, norms, clipped = _steps(pipe, model, loss_of, (draw(run.batch_size, generator) for _ in range(run.steps)))
    tail = losses[-max(1, run.steps // 10) :]
    loss = fmean(tail) if all(map(math.isfinite, losses)) and len(losses) == run.steps else math.inf
    return {
        "largest_norm": max((norm for norm in norms if math.isfinite(norm)), default=0.0),
        "diverged": not loss <= losses[0],
        "loss": loss if math.isfinite(loss) else None,
        "clip_rate": clipped / len(norms),
    }


def _steps(
    pipe: tg.GradientPipeline, model: nn.Module, loss_of: Callable[[nn.Module, Any], Tensor], batches: Any
) -> tuple[list[float], list[float], int]:
    """Losses, norms, and the number of clipped steps, up to the first that is not finite."""
    losses: list[float] = []
    norms: list[float] = []
    clipped = 0
    for window in pipe.windows(batches):
        for batch in window:
            loss = loss_of(model, batch)
            pipe.backward(loss)
            losses.append(float(loss.detach()))
        record = pipe.step()
        assert record.grad_norm is not None
        norms.append(record.grad_norm)
        clipped += record.clip_coef is not None and record.clip_coef < 1.0
        if not (math.isfinite(record.grad_norm) and math.isfinite(losses[-1])):
            break
    return losses, norms, clipped


def _images(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    case = ImageCase()
    train_samples, _ = case.load()
    images, labels = case.batch(train_samples, torch.randint(len(train_samples), (size,), generator=generator))
    return images, labels


def _image_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return functional.cross_entropy(model(images), labels)
