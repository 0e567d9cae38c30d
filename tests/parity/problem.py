"""Small problems whose exact gradient is known: the axes of the parity grid."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FEATURES = 6
BATCHES = ("equal", "ragged", "zero_weight", "partial", "early_end")
PARAMETERS = ("plain", "frozen", "unused", "unused_on_one_rank", "used_now_and_then", "tied")
REDUCTIONS = ("mean", "sum")
MICRO_BATCHES = (1, 3)

Batch = dict[str, Tensor]
Loaders = list[list[Batch]]


@dataclass(frozen=True)
class Case:
    micro_batches: int
    batches: str
    parameters: str
    reduction: str

    def __str__(self) -> str:
        return f"K={self.micro_batches}-{self.batches}-{self.parameters}-{self.reduction}"


def grid() -> list[Case]:
    return [Case(*values) for values in itertools.product(MICRO_BATCHES, BATCHES, PARAMETERS, REDUCTIONS)]


def pairs() -> list[Case]:
    """A quarter of the grid that holds every pair of batches and parameters, for runs that are slow to start."""
    return [
        Case(MICRO_BATCHES[(i + j) % 2], batches, parameters, REDUCTIONS[(i // 2 + j) % 2])
        for i, batches in enumerate(BATCHES)
        for j, parameters in enumerate(PARAMETERS)
    ]


def halves_of_pairs() -> tuple[list[Case], list[Case]]:
    """The pairs in two halves, each with every value of every axis."""
    halves: tuple[list[Case], list[Case]] = ([], [])
    for number, case in enumerate(pairs()):
        row, column = divmod(number, len(PARAMETERS))
        halves[(row + column // 2) % 2].append(case)
    return halves


class Net(nn.Module):
    """Two layers and a branch; which parameters are frozen, unused or tied is one axis of the grid."""

    def __init__(self, parameters: str) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.branch = nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, 1)
        self.uses_branch = parameters not in ("unused",)
        if parameters == "frozen":
            self.first.bias.requires_grad_(False)
            self.second.weight.requires_grad_(False)
        if parameters == "tied":
            self.second.weight = self.first.weight
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        if self.uses_branch and bool(branch):
            hidden = hidden + torch.tanh(self.branch(hidden))
        return self.head(hidden).squeeze(-1)


def loss_of(model: nn.Module, batch: Batch, reduction: str) -> Tensor:
    """sum_j w_j l_j, or that over sum_j w_j, which is NaN for a micro-batch of padding."""
    losses = batch["weight"] * (model(batch["x"], batch["branch"]) - batch["y"]).square()
    return losses.sum() if reduction == "sum" else losses.sum() / batch["weight"].sum()


def weight_of(batch: Batch) -> Tensor:
    return batch["weight"].sum()


def loaders(case: Case, world_size: int, fewest: int = 0) -> Loaders:
    """The micro-batches of every rank: about two windows; `fewest` is how many the shortest loader has."""
    generator = torch.Generator().manual_seed(1 + world_size)
    return [
        [_batch(case, rank, position, generator) for position in range(_length(case, rank, world_size, fewest))]
        for rank in range(world_size)
    ]


def _length(case: Case, rank: int, world_size: int, fewest: int) -> int:
    full = 2 * case.micro_batches
    if case.batches == "partial":
        return full + 1
    if case.batches == "early_end":
        # The last rank gets next to nothing, the first ends inside its second window.
        return {0: case.micro_batches + 1, world_size - 1: fewest}.get(rank, full) if world_size > 1 else full - 1
    return full


def _batch(case: Case, rank: int, position: int, generator: torch.Generator) -> Batch:
    ragged = case.batches != "equal"
    size = int(torch.randint(1, 8, (), generator=generator)) if ragged else 4
    weight = torch.ones(size)
    if ragged:
        weight = torch.randint(1, 9, (size,), generator=generator) / 4
    if case.batches == "zero_weight" and (position + rank) % 3 == 0:
        weight = torch.zeros(size)
    return {
        "x": torch.randn(size, FEATURES, generator=generator),
        "y": torch.randn(size, generator=generator),
        "weight": weight,
        "branch": torch.tensor(_uses_branch(case, rank, position)),
    }


def _uses_branch(case: Case, rank: int, position: int) -> bool:
    if case.parameters == "unused_on_one_rank":
        return rank > 0
    if case.parameters == "used_now_and_then":  # in a window's first micro-batch but not in its last, on one rank
        return rank == 0 and position % 3 == 0
    return True


def target(case: Case, everyone: Loaders) -> list[dict[str, Tensor | None] | None]:
    """The gradient of one big batch on one device in float64, window by window; None where nothing has weight."""
    model = Net(case.parameters).double()
    longest = max(map(len, everyone))
    windows = []
    for start in range(0, longest, case.micro_batches):
        batches = [batch for loader in everyone for batch in loader[start : start + case.micro_batches]]
        total_weight = sum(float(weight_of(batch)) for batch in batches)
        if total_weight == 0:
            windows.append(None)
            continue
        model.zero_grad()
        loss = sum(loss_of(model, {key: t.double() for key, t in batch.items()}, "sum") for batch in batches)
        (loss / total_weight).backward()
        windows.append({name: p.grad for name, p in model.named_parameters()})
    return windows


def relative_error(case: Case, delivered: dict[str, Tensor | None], exact: dict[str, Tensor | None]) -> float:
    """2-norm of the difference over 2-norm of the target; inf if a gradient is missing or left over.

    A parameter that only batches without weight used has a gradient of zero, or none: their backward may be left
    out, and where a wrapper needs a backward, a batch is repeated without weight.
    """
    assert list(delivered) == list(exact)
    zero_is_none = case.batches in ("zero_weight", "early_end")
    difference, size = 0.0, 0.0
    for name, want in exact.items():
        have = delivered[name]
        if zero_is_none:
            have, want = _none_if_zero(have), _none_if_zero(want)
        if (have is None) != (want is None):
            return float("inf")
        if have is not None and want is not None:
            difference += float((have.double() - want).square().sum())
            size += float(want.square().sum())
    return (difference / size) ** 0.5


def _none_if_zero(grad: Tensor | None) -> Tensor | None:
    return grad if grad is not None and bool(grad.any()) else None
