"""A contrastive problem: two views of each sample, one encoder, a learnt temperature."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32


class Towers(nn.Module):
    """The same weights on every call."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 8))
        generator = torch.Generator().manual_seed(0)  # ranks may be threads, which share the global one
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.25, 0.25, generator=generator)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(self.body(inputs), dim=-1)

    @staticmethod
    def contrast(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
        scores, pairs = first @ second.T * scale, torch.arange(len(first))
        return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2


class Captured(torch.optim.SGD):
    """Keeps the gradient that it is given, and changes nothing."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.0)
        self.seen = torch.empty(0)

    def step(self, closure=None):
        held = [p for group in self.param_groups for p in group["params"]]
        self.seen = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in held)
        return super().step(closure)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def batches(num: int, rank: int = 0, ranks: int = 1) -> list[tuple[Tensor, Tensor]]:
    """This rank's micro-batches of a big batch of 32 samples."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(SIZE, 16, generator=generator)
    second = first + 0.3 * torch.randn(SIZE, 16, generator=generator)
    own = [part.chunk(ranks)[rank].chunk(num) for part in (first, second)]
    return list(zip(*own, strict=True))


def encode(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return model(batch[0]), model(batch[1])


def loss_of(model: Towers, representations: tuple[Tensor, Tensor]) -> Tensor:
    return Towers.contrast(*representations, model.temperature.exp())


def big_batch(model: Towers, scale: float | None = None) -> tuple[Tensor, float]:
    """The gradient and the loss of all samples at once, in float64."""
    model = model.double()
    first, second = (part.double() for part in batches(1)[0])
    temperature = model.temperature.exp() if scale is None else torch.tensor(scale, dtype=torch.float64)
    loss = model.contrast(model(first), model(second), temperature)
    loss.backward()
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()), float(loss.detach())
