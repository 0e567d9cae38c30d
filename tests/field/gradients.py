"""The gradient of one big batch in float64, and how far another one is from it."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 8
Batch = tuple[Tensor, Tensor]


def linear_model() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(FEATURES, 1)


def regression_batches(num_batches: int, *, seed: int = 0, size: int = 4, scale: float = 1.0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(size, FEATURES, generator=generator), scale * torch.randn(size, 1, generator=generator))
        for _ in range(num_batches)
    ]


def loader_of(batches: Sequence[Batch]) -> DataLoader:
    """A torch loader that gives exactly these batches, in order."""
    data = TensorDataset(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    return DataLoader(data, batch_size=len(batches[0][0]))


def mean_square(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def flat_grad(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.detach().flatten() for p in model.parameters()]).clone()


class Recorder(torch.optim.SGD):
    """Changes nothing; keeps the gradient of each step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.model, self.gradients = model, []

    def step(self, closure=None):
        self.gradients.append(flat_grad(self.model))
        return super().step(closure)


def exact_gradient(
    model: nn.Module, batches: Sequence[Batch], loss_of: Callable[[nn.Module, Batch], Tensor] = mean_square
) -> Tensor:
    """One backward over all batches as one, on one process, in float64."""
    model = copy.deepcopy(model).double()
    model.zero_grad()
    big = tuple(torch.cat(tensors) for tensors in zip(*batches, strict=True))
    loss_of(model, tuple(t.double() if t.is_floating_point() else t for t in big)).backward()
    return flat_grad(model)


def relative_error(have: Tensor, want: Tensor) -> float:
    return float((have.double() - want).norm() / want.norm())


def gain(have: Tensor, want: Tensor) -> float:
    """|have| / |want|."""
    return float(have.double().norm() / want.norm())


def cosine(have: Tensor, want: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(have.double(), want, dim=0))
