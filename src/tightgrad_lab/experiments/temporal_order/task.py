"""The temporal-order task: which of two symbols came first, seen long before the end of a sequence of noise.

    Hochreiter and Schmidhuber 1997, Long short-term memory, doi:10.1162/neco.1997.9.8.1735, task 6a;
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv:1211.5063, 4.1.

A sequence is drawn from four symbols that mean nothing; at one place in its second tenth and one in its fifth tenth
stands A or B. After the last symbol the model says which of AA, AB, BA and BB it was. As in the paper, plain SGD on
small batches, and a task counts as learned when 99 % of fresh sequences are answered right.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad_lab.training.files import finite

SYMBOLS, ORDERS = 6, 4
A, NOISE = 0, 2
"""A and B are 0 and 1, the others 2 to 5."""
LEARNED = 0.99
TEST_SEED = 999_999
CURVE_POINTS = 100


@dataclass(frozen=True)
class Task:
    """One training.

    Args:
        kind: "rnn" (tanh) or "lstm".
        length: of the sequences.
        seed: of weights and sequences.
        max_norm: of the gradient; None clips nothing.
        steps: at most.
        learning_rate: of plain SGD.
        batch_size: sequences of a step.
        hidden: units.
        check_every: steps between tests.
        test_sequences: of a test; the same ones for all runs of a length.
    """

    kind: str
    length: int
    seed: int
    max_norm: float | None
    steps: int
    learning_rate: float
    batch_size: int
    hidden: int
    check_every: int
    test_sequences: int


def sequences(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw.

    Returns:
        One-hot symbols, float32 of shape (length, count, SYMBOLS), and the order, int64 of shape (count,).
    """
    symbols = torch.randint(NOISE, SYMBOLS, (count, length), generator=generator)
    chosen = torch.randint(A, NOISE, (count, 2), generator=generator)
    rows = torch.arange(count)
    for place, begin in enumerate((1, 4)):
        low, high = begin * length // 10, (begin + 1) * length // 10
        symbols[rows, torch.randint(low, high, (count,), generator=generator)] = chosen[:, place]
    return functional.one_hot(symbols.T, SYMBOLS).float(), 2 * chosen[:, 0] + chosen[:, 1]


class Reader(nn.Module):
    """A recurrent layer and a linear one on its last state."""

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.recurrent: nn.RNNBase = (nn.RNN if kind == "rnn" else nn.LSTM)(SYMBOLS, hidden)
        self.head = nn.Linear(hidden, ORDERS)
        self._start(kind, hidden)

    def _start(self, kind: str, hidden: int) -> None:
        """A state that neither fades nor grows at first: rotations for the RNN, a forget gate of 0.95 for the LSTM."""
        weights = dict(self.recurrent.named_parameters())
        nn.init.zeros_(weights["bias_ih_l0"])
        nn.init.zeros_(weights["bias_hh_l0"])
        if kind == "rnn":
            nn.init.orthogonal_(weights["weight_hh_l0"])
            nn.init.normal_(weights["weight_ih_l0"], std=0.1)
        else:
            nn.init.constant_(weights["bias_ih_l0"][hidden : 2 * hidden], 3.0)

    def forward(self, symbols: Tensor) -> Tensor:
        """Shape (length, n, SYMBOLS) to scores of shape (n, ORDERS)."""
        states, _ = self.recurrent(symbols)
        scores: Tensor = self.head(states[-1])
        return scores


def train(task: Task) -> dict[str, Any]:
    """Train until the task is learned, the weights are not finite any more, or the steps are used up.

    Returns:
        "learned": bool; "steps" taken; "accuracy" of the last test; "diverged": the gradient was not finite;
        "largest_norm" of the gradient before clipping, "clip_rate"; "curve": for up to CURVE_POINTS equal stretches of
        steps the largest norm in each (None: not finite).
    """
    torch.manual_seed(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    model = Reader(task.kind, task.hidden)
    optimizer = torch.optim.SGD(model.parameters(), task.learning_rate)
    clip = None if task.max_norm is None else tg.clip.GlobalNorm(task.max_norm)
    pipe = tg.attach(model, optimizer, tg.Plan(clip=clip, guard=tg.Guard("propagate")))
    test = sequences(task.test_sequences, task.length, torch.Generator().manual_seed(TEST_SEED))
    norms: list[float] = []
    clipped = 0
    accuracy = 0.0
    batches = (sequences(task.batch_size, task.length, generator) for _ in range(task.steps))
    for window in pipe.windows(batches):
        for symbols, order in window:
            pipe.backward(functional.cross_entropy(model(symbols), order))
        record = pipe.step()
        assert record.grad_norm is not None
        norms.append(record.grad_norm)
        clipped += record.clip_coef is not None and record.clip_coef < 1.0
        if not math.isfinite(record.grad_norm):
            break
        if len(norms) % task.check_every == 0:
            accuracy = _accuracy(model, *test)
            if accuracy >= LEARNED:
                break
    finite_norms = [norm for norm in norms if math.isfinite(norm)]
    return {
        "learned": accuracy >= LEARNED,
        "steps": len(norms),
        "accuracy": accuracy,
        "diverged": len(finite_norms) < len(norms),
        "largest_norm": max(finite_norms, default=0.0),
        "clip_rate": clipped / len(norms),
        "curve": _curve(norms, task.steps),
    }


def _curve(norms: list[float], steps: int) -> list[float | None]:
    width = max(1, -(-steps // CURVE_POINTS))
    stretches = [norms[begin : begin + width] for begin in range(0, len(norms), width)]
    return [finite(float(f"{max(stretch):.4g}")) if all(map(math.isfinite, stretch)) else None for stretch in stretches]


@torch.no_grad()
def _accuracy(model: nn.Module, symbols: Tensor, order: Tensor) -> float:
    return float((model(symbols).argmax(1) == order).double().mean())
