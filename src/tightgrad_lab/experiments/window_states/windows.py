"""The windows that every framework is given, the gradient that each should have, and how far what it took is from it.

A tagger of three tensors, small enough to restate in any framework, over sentences of which a number of tokens count;
its loss is the mean over these, as most training code writes it. The target is the gradient of the mean over all
tokens of the window on all ranks, by one backward in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad_lab.schema.accumulation import StepCell

FEATURES, VOCABULARY, LENGTH = 8, 11, 16
IGNORED = -100
MICRO_BATCHES = 4
PARTIAL = 3
RIGHT = 1e-5
"""Relative errors of float32 sums stay below this; other denominators give errors far above it."""
Batch = tuple[Tensor, Tensor]
Taken = tuple[int, Tensor]
"""How many micro-batches had been seen when the optimizer stepped, and the gradient that it was given."""
Loop = Callable[[Sequence[Batch], int], list[Taken]]
"""Trains on micro-batches for a number of epochs and tells every step."""


@dataclass(frozen=True)
class Scenario:
    """What a loader holds.

    Args:
        tokens: that count, in each micro-batch of each rank; a rank beyond the last takes the last's.
        epochs: how often it is gone through.
    """

    tokens: tuple[tuple[int, ...], ...]
    epochs: int = 1


SCENARIOS = {
    "equal": Scenario(((LENGTH,) * MICRO_BATCHES,)),
    "ragged": Scenario(((16, 2, 16, 1), (3, 16, 1, 8))),
    "empty": Scenario(((16, 0, 16, 16), (16,) * MICRO_BATCHES)),
    "partial": Scenario(((LENGTH,) * (MICRO_BATCHES + PARTIAL),), epochs=2),
}
"""Full windows of equal and of ragged micro-batches; one of which holds padding only; and a window that ends early."""


class Tagger(nn.Module):
    """Gives each token a score for each tag; the same weights on every call."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Parameter(torch.randn(VOCABULARY, FEATURES, generator=generator))
        self.weight = nn.Parameter(torch.randn(VOCABULARY, FEATURES, generator=generator) / FEATURES**0.5)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 of shape (n, LENGTH) to scores of shape (n, LENGTH, VOCABULARY)."""
        return functional.linear(functional.embedding(input_ids, self.embed), self.weight, self.bias)


def num_tokens(batch: Batch) -> Tensor:
    """Those that count."""
    return (batch[1] != IGNORED).sum()


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over them; NaN if there are none, but its gradient is then 0 on the CPU."""
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=IGNORED)


def flat_gradient(model: nn.Module) -> Tensor:
    """A copy of all gradients as one tensor."""
    return torch.cat([p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]).clone()


class Recorder(torch.optim.SGD):
    """Changes nothing; keeps the gradient of each step, and how many micro-batches had been `seen`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.model, self.seen = model, 0
        self.taken: list[Taken] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep it."""
        self.taken.append((self.seen, flat_gradient(self.model)))


def batches_of(name: str, seed: int, rank: int = 0) -> list[Batch]:
    """One rank's micro-batches, of one sentence each."""
    tokens = SCENARIOS[name].tokens
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    batches = []
    for count in tokens[min(rank, len(tokens) - 1)]:
        input_ids, labels = (torch.randint(VOCABULARY, (1, LENGTH), generator=generator) for _ in range(2))
        labels[:, count:] = IGNORED
        batches.append((input_ids, labels))
    return batches


def exact_gradient(batches: Sequence[Batch]) -> Tensor:
    """One backward over all batches as one, on one process, in float64."""
    model = Tagger().double()
    mean_loss(model, (torch.cat([ids for ids, _ in batches]), torch.cat([labels for _, labels in batches]))).backward()
    return flat_gradient(model)


def compared(have: Tensor | None, want: Tensor) -> dict[str, Any]:
    """How a gradient is off: gain |have| / |want|, relative error, cosine; None where it is not finite.

    Without a gradient no step was taken: that is a gain of 0.
    """
    if have is None:
        return {"outcome": "no_step", "gain": 0.0, "relative_error": 1.0, "cosine": None}
    if not bool(torch.isfinite(have).all()):
        return {"outcome": "not_finite", "gain": None, "relative_error": None, "cosine": None}
    have = have.double()
    error = float((have - want).norm() / want.norm())
    return {
        "outcome": "right" if error < RIGHT else "wrong",
        "gain": float(have.norm() / want.norm()),
        "relative_error": error,
        "cosine": float(functional.cosine_similarity(have, want, dim=0)),
    }


def judged(name: str, taken: Sequence[Taken], ranks: Sequence[Sequence[Batch]]) -> dict[str, dict[str, Any]]:
    """Compare the steps of a scenario with what they should have been.

    Args:
        name: of the scenario.
        taken: the steps.
        ranks: each rank's micro-batches.

    Returns:
        The cells that the scenario fills: one of its own name, and for "partial" also "next", the first step that
        comes after the short window: in the next epoch, whose first window is full.
    """
    full = exact_gradient([batch for own in ranks for batch in own[:MICRO_BATCHES]])
    if name != "partial":
        return {name: compared(next((gradient for _, gradient in taken), None), full)}
    last = exact_gradient([batch for own in ranks for batch in own[MICRO_BATCHES:]])
    end = MICRO_BATCHES + PARTIAL
    return {
        "partial": compared(next((gradient for seen, gradient in taken if seen == end), None), last),
        "next": compared(next((gradient for seen, gradient in taken if seen > end), None), full),
    }


def together(cells: Sequence[dict[str, Any]]) -> StepCell:
    """One cell from those of several seeds: the worst outcome, the numbers of each."""
    order = ("not_finite", "no_step", "wrong", "right")
    return {
        "outcome": min((cell["outcome"] for cell in cells), key=order.index),
        "gain": [cell["gain"] for cell in cells],
        "relative_error": [cell["relative_error"] for cell in cells],
        "cosine": [cell["cosine"] for cell in cells],
    }


def failed(error: BaseException) -> StepCell:
    """The cell of a framework that raised."""
    return {"outcome": f"fails: {type(error).__name__}", "gain": [], "relative_error": [], "cosine": []}


def cells_of(loop: Loop, seeds: int) -> dict[str, StepCell]:
    """Run a loop of one process on every scenario; a scenario on which it raises does not stop the others."""
    found: dict[str, StepCell] = {}
    for name, scenario in SCENARIOS.items():
        several: dict[str, list[dict[str, Any]]] = {}
        keys = ("partial", "next") if name == "partial" else (name,)
        try:
            for seed in range(seeds):
                batches = batches_of(name, seed)
                for key, cell in judged(name, loop(batches, scenario.epochs), [batches]).items():
                    several.setdefault(key, []).append(cell)
        except Exception as error:
            found |= dict.fromkeys(keys, failed(error))
        else:
            found |= {key: together(own) for key, own in several.items()}
    return found


def largest(errors: Sequence[float | None]) -> float:
    """The largest error; one that is not finite is infinite."""
    return max((math.inf if error is None else error for error in errors), default=math.inf)
