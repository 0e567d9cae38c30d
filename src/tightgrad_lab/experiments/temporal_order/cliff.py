"""Why recurrent networks need a bound: the cliff in the loss of one unit, and gradients on their way back in time.

Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, figure 6: one logistic unit that feeds itself for 50 steps; its loss
over weight and bias has a wall. Plain gradient descent is thrown off when it meets the wall, clipped descent is not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad_lab.experiments.temporal_order.task import SYMBOLS, Reader, sequences

STEPS, START, TARGET = 50, 0.5, 0.7
"""Of the unit: time steps, first state, wanted last state."""
WEIGHTS, BIASES, GRID = (3.9, 5.7), (-2.75, -1.35), 61
BEGIN, RATE, MAX_NORM, UPDATES = (5.5, -2.1), 1.0, 0.1, 48
LENGTHS = (10, 20, 50, 100)
GAINS = {"rnn": (0.9, 1.0, 1.5), "lstm": (1.0,)}
"""Of the recurrent weights, times their usual start: an RNN whose gradient vanishes, stays, or explodes."""
BATCH, HIDDEN = 32, 50


def unit_loss(weight: Tensor, bias: Tensor) -> Tensor:
    """Loss of the unit, of the shape of the weights and biases."""
    state = torch.full_like(weight, START)
    for _ in range(STEPS):
        state = torch.sigmoid(weight * state + bias)
    return (state - TARGET).square()


def descent(max_norm: float | None) -> dict[str, list[Any]]:
    """The way of gradient descent over the surface: places [weight, bias], and the norm of each gradient."""
    place = torch.tensor(BEGIN, dtype=torch.float64)
    places, norms = [place.tolist()], []
    for _ in range(UPDATES):
        place = place.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(unit_loss(place[0], place[1]), place)
        norm = float(gradient.norm())
        scale = 1.0 if max_norm is None else min(1.0, max_norm / max(norm, 1e-30))
        place = place.detach() - RATE * scale * gradient
        places.append(place.tolist())
        norms.append(norm)
    return {"places": places, "norms": norms}


def surface() -> dict[str, Any]:
    """The loss on a grid, and two ways over it."""
    weights = torch.linspace(*WEIGHTS, GRID, dtype=torch.float64)
    biases = torch.linspace(*BIASES, GRID, dtype=torch.float64)
    weight, bias = torch.meshgrid(weights, biases, indexing="xy")
    loss = [[float(f"{value:.4g}") for value in row] for row in unit_loss(weight, bias).tolist()]
    return {
        "steps": STEPS,
        "rate": RATE,
        "max_norm": MAX_NORM,
        "weights": weights.tolist(),
        "biases": biases.tolist(),
        "loss": loss,
        "without": descent(None),
        "with": descent(MAX_NORM),
    }


def backward_norms(kind: str, gain: float, length: int) -> list[float]:
    """Norm of the gradient with respect to each hidden state, from the last time step back to the first.

    Args:
        kind: "rnn" or "lstm".
        gain: factor on the recurrent weights of a fresh network.
        length: time steps.
    """
    torch.manual_seed(0)
    model = Reader(kind, HIDDEN)
    cell: nn.RNNCellBase = (nn.RNNCell if kind == "rnn" else nn.LSTMCell)(SYMBOLS, HIDDEN)
    weights = {name.removesuffix("_l0"): value for name, value in model.recurrent.state_dict().items()}
    cell.load_state_dict(weights | {"weight_hh": gain * weights["weight_hh"]})
    symbols, order = sequences(BATCH, length, torch.Generator().manual_seed(1))
    state: Any = torch.zeros(BATCH, HIDDEN) if kind == "rnn" else (torch.zeros(BATCH, HIDDEN),) * 2
    states: list[Tensor] = []
    for symbol in symbols:
        state = cell(symbol, state)
        states.append(state if kind == "rnn" else state[1])  # an LSTM remembers in its cell
        states[-1].retain_grad()
    last = state if kind == "rnn" else state[0]
    nn.functional.cross_entropy(model.head(last), order).backward()
    return [float(f"{one.grad.norm():.4g}") for one in reversed(states) if one.grad is not None]


def on_the_way_back(lengths: Sequence[int] = LENGTHS) -> list[dict[str, Any]]:
    """A curve for each network and length."""
    return [
        {"kind": kind, "gain": gain, "length": length, "norms": backward_norms(kind, gain, length)}
        for kind, gains in GAINS.items()
        for gain in gains
        for length in lengths
    ]
