"""What a clip factor does to Muon and AdamW: before the optimizers, from step to step, and on Muon's update afterwards.

    python benchmarks/muon_clip.py benchmarks/results/2026-11-29-muon-clip.json

The model is an MLP: an input layer, four square matrices and a head. torch.optim.Muon takes the square ones, AdamW all
else. Gradients are recorded along one run that nobody clips; each scenario then hands the same gradients, multiplied by
its factors, to fresh optimizers, and their steps are compared with those of factor 1. A file that is there already is
completed: about ten minutes of one core in all.
"""

import copy
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightgrad as tg
from tightgrad_lab.environment import environment

WIDTHS, WIDEST = (128, 512), 2048
LAYERS, INPUTS, CLASSES, BATCH, BATCHES = 4, 64, 32, 256, (8, 64, 512)
STEPS = {128: 40, 512: 20}
RUN = 200
RATE, ADAM_RATE, MAX_NORM = 0.02, 1e-3, 1.0
FACTORS = tuple(10.0**-power for power in range(10))
SPREADS = (0.5, 1.0, 2.0, 3.0)
"""Factors of 10^-u, where u is drawn evenly from [0, spread] at each step."""
SPIKES = (10.0, 1e4)
LOPSIDED = 1e8
SEEDS = (0, 1, 2)

Grads = dict[str, Tensor]


class Net(nn.Module):
    """Four square matrices between an input layer and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(LAYERS))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(LAYERS))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        values = F.gelu(self.first(inputs))
        for layer, shift in zip(self.hidden, self.shifts, strict=True):
            values = values + F.gelu(layer(values) + shift)
        return self.head(values)


class Data:
    """Inputs whose class is the largest output of a fixed random network."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(1000 + seed)
        self._first = torch.randn(INPUTS, 64, generator=self._generator) / INPUTS**0.5
        self._second = torch.randn(64, CLASSES, generator=self._generator)

    def batch(self, size: int = BATCH) -> tuple[Tensor, Tensor]:
        """Draw inputs and classes."""
        inputs = torch.randn(size, INPUTS, generator=self._generator)
        return inputs, (torch.tanh(2 * inputs @ self._first) @ self._second).argmax(1)


def fresh(width: int, seed: int) -> Net:
    """Return a model with weights of this seed."""
    torch.manual_seed(seed)
    return Net(width)


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Muon for the square matrices, AdamW for the rest."""
    matrices = [parameter for name, parameter in model.named_parameters() if name.startswith("hidden")]
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("hidden")]
    return {
        "muon": torch.optim.Muon(matrices, lr=RATE, weight_decay=0.0),
        "adamw": torch.optim.AdamW(others, lr=ADAM_RATE, weight_decay=0.0),
    }


def owner(name: str) -> str:
    """Return the optimizer that steps this parameter."""
    return "muon" if name.startswith("hidden") else "adamw"


def backward(model: nn.Module, data: Data, size: int = BATCH) -> float:
    """Write new gradients; return the loss."""
    model.zero_grad()
    inputs, classes = data.batch(size)
    loss = F.cross_entropy(model(inputs), classes)
    loss.backward()
    return float(loss.detach())


def recorded(width: int, steps: int) -> tuple[Net, list[Grads]]:
    """Return a model at its start, and the gradients of a run of it that nobody clips."""
    model, data = fresh(width, 0), Data(0)
    start, stream = copy.deepcopy(model), []
    steppers = optimizers(model)
    for _ in range(steps):
        backward(model, data)
        stream.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        for optimizer in steppers.values():
            optimizer.step()
    return start, stream


def steps_of(start: Net, stream: Sequence[Grads], factors: Sequence[float]) -> list[dict[str, Tensor]]:
    """Return what each optimizer moves its parameters by at each step, given the stream times the factors."""
    model = copy.deepcopy(start)
    steppers = optimizers(model)
    moves = []
    for grads, factor in zip(stream, factors, strict=True):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name] * factor
        for optimizer in steppers.values():
            optimizer.step()
        moved: dict[str, list[Tensor]] = {"muon": [], "adamw": []}
        for name, parameter in model.named_parameters():
            moved[owner(name)].append((parameter.detach() - before[name]).double().flatten())
        moves.append({kind: torch.cat(parts) for kind, parts in moved.items()})
    return moves


def compared(moves: Sequence[dict[str, Tensor]], reference: Sequence[dict[str, Tensor]]) -> list[dict[str, object]]:
    """For each optimizer: length of its steps over the reference's, and the cosine between them; medians and worst."""
    rows = []
    for kind in ("muon", "adamw"):
        ratios, cosines = [], []
        for move, wanted in zip(moves, reference, strict=True):
            norm, other = float(move[kind].norm()), float(wanted[kind].norm())
            ratios.append(norm / other)
            cosines.append(float(move[kind] @ wanted[kind]) / (norm * other) if norm else math.nan)
        rows.append(
            {
                "optimizer": kind,
                "step_over_reference": statistics.median(ratios),
                "step_smallest": min(ratios),
                "step_largest": max(ratios),
                "cosine": statistics.median(cosines),
                "cosine_smallest": min(cosines),
            }
        )
    return rows


def norm_of(grads: Grads, kind: str | None = None) -> float:
    """The norm of all gradients, or of one optimizer's."""
    return float(tg.get_total_norm([grad for name, grad in grads.items() if kind in (None, owner(name))]))


def before_the_step(width: int) -> list[dict[str, object]]:
    """Factors before the optimizers: constant ones, drawn ones, and those by which global clipping answers a spike."""
    steps = STEPS[width]
    start, stream = recorded(width, steps)
    reference = steps_of(start, stream, [1.0] * steps)
    rows: list[dict[str, object]] = []

    def add(scenario: str, value: float, moves: Sequence[dict[str, Tensor]], wanted=reference) -> None:
        rows.extend({"scenario": scenario, "value": value, "width": width, **row} for row in compared(moves, wanted))

    norms = {kind: [norm_of(grads, kind) for grads in stream] for kind in ("muon", "adamw")}
    elements = {kind: sum(g.numel() for n, g in stream[0].items() if owner(n) == kind) for kind in norms}
    rows.extend(
        {
            "scenario": "gradients",
            "width": width,
            "optimizer": kind,
            "norm": statistics.median(found),
            "rms": statistics.median(found) / elements[kind] ** 0.5,
        }
        for kind, found in norms.items()
    )
    for factor in FACTORS:
        add("constant", factor, steps_of(start, stream, [factor] * steps))
    for spread in SPREADS:
        draw = torch.Generator().manual_seed(7)
        factors = (10.0 ** (-spread * torch.rand(steps, generator=draw, dtype=torch.float64))).tolist()
        add("drawn", spread, steps_of(start, stream, factors))
    # A step in the middle whose gradient is another batch's, with turned signs and many times as large.
    at = steps // 2
    for size in SPIKES:
        spiked = [dict(grads) for grads in stream]
        spiked[at] = {name: -size * grad for name, grad in stream[0].items()}
        clip = [min(1.0, MAX_NORM / norm_of(grads)) for grads in spiked]
        after = slice(at + 1, at + 1 + max(2, steps // 4))
        for name, factors in (("spike, not clipped", [1.0] * steps), ("spike, clipped", clip)):
            add(name, size, steps_of(start, spiked, factors)[after], reference[after])
    return rows


def afterwards(width: int) -> list[dict[str, object]]:
    """What a bound of 1 on Muon's update leaves of it, at the first step, by the number of samples in the batch."""
    rows = []
    for size in BATCHES:
        model = fresh(width, 0)
        backward(model, Data(0), size)
        grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        moved = steps_of(model, [grads], [1.0])[0]["muon"]
        norm = float(moved.norm()) / RATE
        rows.append(
            {
                "scenario": "update clipped to 1",
                "width": width,
                "batch": size,
                "update_norm": norm,
                "shrunk_by": max(norm, 1.0),
            }
        )
    return rows


def clip_none(named: Grads) -> None:
    """Clip nothing."""


def clip_global(named: Grads) -> None:
    """One norm and one factor for all gradients."""
    clipper(tg.clip.GlobalNorm(MAX_NORM), named)


def clip_each(named: Grads) -> None:
    """A norm and a factor for each optimizer's gradients."""
    for kind in ("muon", "adamw"):
        clipper(tg.clip.GlobalNorm(MAX_NORM), {name: grad for name, grad in named.items() if owner(name) == kind})


def clip_adamw(named: Grads) -> None:
    """A norm and a factor for AdamW's gradients; Muon's stay as they are."""
    clipper(tg.clip.GlobalNorm(MAX_NORM), {name: grad for name, grad in named.items() if owner(name) == "adamw"})


def clipper(method: tg.clip.GlobalNorm, named: Grads) -> None:
    """Clip in place."""
    method.clip_(named, {}, tg.get_total_norm, {})


def train(
    width: int,
    steps: int,
    clip: Callable[[Grads], None],
    *,
    seed: int,
    spike: float,
    lopsided: float,
    limit_update: bool,
) -> float:
    """Return the mean loss of the last tenth of a run.

    Args:
        width: of the model.
        steps: of the run.
        clip: changes gradients in place, before the optimizers.
        seed: of weights and data.
        spike: every 20th batch's gradient is turned round and this many times as large; 0 leaves it.
        lopsided: Muon's gradients are this many times as large at every step.
        limit_update: Muon's update is limited to MAX_NORM, times the learning rate.
    """
    model, data = fresh(width, seed), Data(seed)
    steppers = optimizers(model)
    losses = []
    for step in range(steps):
        losses.append(backward(model, data))
        named = {name: parameter.grad for name, parameter in model.named_parameters()}
        if spike and step % 20 == 19:
            for grad in named.values():
                grad.mul_(-spike)
        for name in (name for name in named if owner(name) == "muon"):
            named[name].mul_(lopsided)
        clip(named)
        before = [parameter.detach().clone() for parameter in model.hidden.parameters()]
        for optimizer in steppers.values():
            optimizer.step()
        if limit_update:
            moves = [now.detach() - old for now, old in zip(model.hidden.parameters(), before, strict=True)]
            share = min(1.0, MAX_NORM * RATE / float(tg.get_total_norm(moves)))
            with torch.no_grad():
                for now, old, move in zip(model.hidden.parameters(), before, moves, strict=True):
                    now.copy_(old + share * move)
    return statistics.mean(losses[-steps // 10 :])


WAYS: dict[str, tuple[Callable[[Grads], None], bool]] = {
    "nothing clipped": (clip_none, False),
    "one norm": (clip_global, False),
    "a norm for each optimizer": (clip_each, False),
    "AdamW's only": (clip_adamw, False),
    "Muon's update afterwards": (clip_none, True),
}


def training(name: str, spike: float, lopsided: float = 1.0) -> list[dict[str, object]]:
    """Final losses of short runs."""
    clip, limit = WAYS[name]
    found = [
        train(WIDTHS[0], RUN, clip, seed=seed, spike=spike, lopsided=lopsided, limit_update=limit) for seed in SEEDS
    ]
    settings = {"width": WIDTHS[0], "steps": RUN, "spike": spike, "lopsided": lopsided, "clip": name}
    return [{"scenario": "training", **settings, "loss": found}]


def parts() -> dict[str, Callable[[], list[dict[str, object]]]]:
    """What is measured, by name."""
    return {
        **{f"factors before the step, width {width}": partial(before_the_step, width) for width in WIDTHS},
        **{f"update clipped afterwards, width {width}": partial(afterwards, width) for width in (*WIDTHS, WIDEST)},
        **{f"{name}, spikes of {spike:g}": partial(training, name, spike) for spike in (0.0, 100.0) for name in WAYS},
        **{f"{name}, Muon's gradients times {LOPSIDED:g}": partial(training, name, 0.0, LOPSIDED) for name in WAYS},
    }


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    result = {
        "environment": environment(),
        "command": shlex.join(["python", "benchmarks/muon_clip.py", *sys.argv[1:]]),
        "settings": {
            "layers": LAYERS,
            "batch": BATCH,
            "steps": STEPS,
            "rate": RATE,
            "adam_rate": ADAM_RATE,
            "max_norm": MAX_NORM,
            "seeds": SEEDS,
        },
        "rows": json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else [],
    }
    for name, measure in parts().items():
        if all(row["part"] != name for row in result["rows"]):
            result["rows"] += [{"part": name, **row} for row in measure()]
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(name, flush=True)


if __name__ == "__main__":
    main()
