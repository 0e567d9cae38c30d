"""One rank's side of the audit: runs the user's loop and compares each optimizer step with the reference."""

import copy
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tightgrad_lab.audit.additive import is_sum, not_additive
from tightgrad_lab.audit.candidates import Window, exact
from tightgrad_lab.audit.explain import Step, distance, explain, right
from tightgrad_lab.audit.frozen import frozen_modules
from tightgrad_lab.audit.given import batches_of, model_of
from tightgrad_lab.audit.patterns import undivided
from tightgrad_lab.audit.randomness import Draws, fixed_randomness, without_dropout
from tightgrad_lab.audit.reference import Reference
from tightgrad_lab.audit.scenario import NEVER_CLIPS, Scenario, Windows
from tightgrad_lab.audit.specification import PARTIALS, Specification
from tightgrad_lab.audit.watch import Taken, Watch, digest, watched, weights_of
from tightgrad_lab.errors import ArgumentError

SEED = 1234
TOLERANCE = {"float32": 2e-4, "bfloat16": 4e-2, "float16": 5e-3}
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float32"}
LOW_PRECISION_LIMIT = 0.5


@dataclass(frozen=True)
class Observation:
    """One optimizer step on one rank, beside what was right.

    Args:
        scenario: index of the scenario.
        window: index of the window.
        rank: whose.
        gain: projection of what was taken on what was right, over the square of the latter.
        cosine: of the angle between the two.
        relative_error: norm of their difference over the norm of what was right.
        ok: whether they agree within the precision of the loop.
        explanations: mistakes that would have given what was taken, the plainest first.
        dtype: of the gradients.
        precision: of the loop, as its file says.
    """

    scenario: int
    window: int
    rank: int
    gain: float
    cosine: float
    relative_error: float
    ok: bool
    explanations: tuple[str, ...]
    dtype: str
    precision: str


@dataclass(frozen=True)
class RankReport:
    """What one rank saw in one scenario.

    Args:
        scenario: index of the scenario.
        rank: whose.
        steps: optimizer steps that were seen.
        weights: a digest of the final weights.
        observations: one for each step that could be compared.
        alone: whether the loop never spoke to another rank, and does not mean to.
        remarks: explanations of what no gradient shows: parameters without an optimizer, a loss that is not additive.
    """

    scenario: int
    rank: int
    steps: int
    weights: str
    observations: tuple[Observation, ...]
    alone: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """What a scenario's steps are compared with.

    Args:
        everyone: rank -> its micro-batches.
        rank: this one's place in it.
        changed: whether the loop has changed its micro-batches in place.
    """

    specification: Specification
    scenario: Scenario
    reference: Reference
    everyone: Sequence[Sequence[Any]]
    rank: int
    max_norm: float | None
    changed: bool


def observe(specification: Specification, index: int, scenario: Scenario, rank: int) -> RankReport:
    """Run one scenario on this rank. Collective: every rank must call it."""
    _seed(SEED)
    batches = batches_of(specification, scenario.ranks * scenario.count, scenario.ragged)
    own = copy.deepcopy(batches[rank :: scenario.ranks])  # the loop may change or empty what it is given
    given = list(own)
    _seed(SEED + 1)
    model = without_dropout(model_of(specification))
    with fixed_randomness() as draws:
        reference = Reference(specification, model)
        reference.fit(batches[0])
        if reference.is_random(batches[0]):
            raise ArgumentError(
                "loss(model, batch) gives another value for the same micro-batch when it is called again, so nothing "
                "can be compared: draw its random numbers with torch (the audit holds those fixed) or in make_batches."
            )
        if is_sum(reference.losses, batches):
            raise ArgumentError(
                "loss(model, batch) returns the sum of the losses of its samples; return their mean, which is the sum "
                "divided by the weight."
            )
        everyone = [batches[other :: scenario.ranks] for other in range(scenario.ranks)]
        start = weights_of(model)
        max_norm = _bound(scenario, reference, start, everyone)
        _set(specification, scenario, max_norm)
        spoken = _collectives()
        with watched(model) as watch:
            specification.train(model, own)
        _accumulates_as_asked(specification, scenario, len(watch.steps))
        alone = specification.alone and scenario.ranks > 1 and _collectives() == spoken
        if alone:
            everyone, place = [everyone[rank]], 0
        else:
            place = rank
            _average_inside(watch.steps)
        changed = not all(_unchanged(*pair) for pair in zip(given, batches[rank :: scenario.ranks], strict=True))
        run = _Run(specification, scenario, reference, everyone, place, max_norm, changed)
        remarks = _remarks(run, watch, draws)
    observations = _observations(run, watch, index, rank)
    weights = digest(weights_of(model))
    return RankReport(index, rank, len(watch.steps), weights, tuple(observations), alone, remarks)


def _observations(run: _Run, watch: Watch, index: int, rank: int) -> list[Observation]:
    windows = _windows(run, len(watch.steps))
    found: list[Observation] = []
    before: tuple[tuple[str, ...], Tensor] | None = None
    for number, taken in enumerate(watch.steps[: len(windows)]):
        finite = all(bool(torch.isfinite(one).all()) for part in taken.parts for one in part.weights.values())
        if not finite or not taken.names:
            break  # what follows has no reference
        gradient = torch.cat([taken.gradient[name].reshape(-1) for name in taken.names])
        previous = before[1] if before is not None and before[0] == taken.names else None
        with fixed_randomness():
            step = _step(run, taken, windows, number, gradient, previous)
            found.append(_compare(run, step, taken, (index, number, rank)))
        before = taken.names, gradient
    return found


def _windows(run: _Run, steps: int) -> Windows:
    """Those of the reading of the last window that the number of steps fits; none if there are more steps than that."""
    readings = [run.specification.partial, *PARTIALS]
    fitting = [windows for one in readings if len(windows := run.scenario.windows(one)) == steps]
    if fitting:
        return fitting[0]
    carried = run.scenario.windows("carry")
    if steps == len(carried) + 1:  # and what was left over at the very end
        return carried
    meant = run.scenario.windows(run.specification.partial)
    return meant if steps < len(meant) and run.scenario.epochs == 1 else []


def _step(run: _Run, taken: Taken, windows: Windows, number: int, gradient: Tensor, before: Tensor | None) -> Step:
    scenario, reference = run.scenario, run.reference

    def made(places: Sequence[int]) -> list[list[Any]]:
        return [reference.micro_batches(taken.parts, [rank[place] for place in places]) for rank in run.everyone]

    def off_by_one() -> list[list[Any]]:
        size = scenario.micro_batches
        if size == 1 or scenario.epochs > 1:
            return []
        return made(range(max(0, (number - 1) * size + 1), number * size + 1))

    def leaked() -> list[list[Any]]:
        first_of_epoch = number and windows[number][0] == 0 and scenario.left_over
        return made([*scenario.tail, *windows[number]]) if first_of_epoch else []

    window = Window(made(windows[number]), run.rank, scenario.micro_batches, gradient, before)
    return Step(
        window,
        run.max_norm,
        lambda vector: reference.pieces(vector, taken.names),
        reference.tied,
        [part.names for part in taken.parts],
        TOLERANCE[run.specification.precision],
        off_by_one,
        leaked,
    )


def _compare(run: _Run, step: Step, taken: Taken, place: tuple[int, int, int]) -> Observation:
    specification = run.specification
    gradient, tolerance = step.window.taken, step.tolerance
    likely = right(step)
    meant = min(likely, key=lambda one: distance(gradient, one))
    error = distance(gradient, meant)
    ok = error <= tolerance
    size = float(meant.square().sum())
    dtype = _DTYPES.get(taken.dtype, str(taken.dtype))
    if not ok and not bool(torch.isfinite(gradient).all()):
        empty = any(not micro.weight for rank in step.window.micro_batches for micro in rank)
        why = ("empty",) if empty else ("not finite",)
        return Observation(*place, math.nan, math.nan, math.inf, False, why, dtype, specification.precision)
    names: list[str] = []
    if not ok:
        names = explain(step)
        if "micro means | 1" in names and _some_are_empty(step.window):
            names.insert(0, "empty counts")
        size_of = step.window.size
        if not names and size_of > 1 and all(undivided(sorted(one), size_of, window=True) for one in taken.terms):
            names = ["undivided"]
        if not names and run.changed:
            names = ["in place"]
        if not names and tolerance < error < LOW_PRECISION_LIMIT and dtype != "float32":
            names = [f"low precision {dtype}"]
        if not names and taken.missing:
            names = [f"no gradient {', '.join(taken.missing)}"]
    norms = float(torch.linalg.vector_norm(gradient) * torch.linalg.vector_norm(meant))
    inner = float(gradient @ meant)
    return Observation(
        *place,
        gain=inner / size if size else 1.0,
        cosine=inner / norms if norms else 0.0,
        relative_error=error,
        ok=ok,
        explanations=tuple(dict.fromkeys(names)),
        dtype=dtype,
        precision=specification.precision,
    )


def _accumulates_as_asked(specification: Specification, scenario: Scenario, steps: int) -> None:
    """Raise an ArgumentError if the loop accumulates as its file says, and not as the audit does."""
    k, count = specification.k, scenario.count
    if k < 1 or k == scenario.micro_batches or steps in {len(scenario.windows(one)) for one in PARTIALS}:
        return
    if steps in (scenario.epochs * math.ceil(count / k), scenario.epochs * (count // k), scenario.epochs * count // k):
        raise ArgumentError(
            f"train accumulates {k} micro-batches, as the file says, where the audit has set ACCUMULATE to "
            f"{scenario.micro_batches}: read ACCUMULATE inside train, not in a default argument or under another name."
        )


def _unchanged(now: Any, before: Any) -> bool:
    """Whether the tensors that both have are the same."""
    if isinstance(now, Tensor) and isinstance(before, Tensor):
        return now.shape == before.shape and torch.equal(now, before)
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        return all(_unchanged(now[key], before[key]) for key in now if key in before)
    if isinstance(now, list | tuple) and isinstance(before, list | tuple):
        return all(_unchanged(*pair) for pair in zip(now, before, strict=False))
    return not hasattr(now, "__dict__") or _unchanged(vars(now), vars(before))


def _some_are_empty(window: Window) -> bool:
    """Whether all micro-batches weigh the same, but for some that weigh nothing."""
    weights = {micro.weight for rank in window.micro_batches for micro in rank}
    return len(weights) == 2 and 0.0 in weights


def _remarks(run: _Run, watch: Watch, draws: Draws) -> tuple[str, ...]:
    """What is wrong with the run and is no matter of one gradient."""
    found = []
    trains = [name for name, parameter in watch.model.named_parameters() if parameter.requires_grad]
    if watch.steps and (unheld := [name for name in trains if name not in watch.held]):
        found.append(f"unheld {', '.join(unheld)}")
    moved = {name for step in watch.steps for name in step.frozen}
    moved |= {name for step in watch.steps for name in step.names if name in run.reference.frozen and step.moved}
    if moved:
        found.append(f"frozen {', '.join(sorted(moved))}")
    found += [f"frozen module {name}" for name in frozen_modules(watch.model)]
    drawn = draws.count
    if watch.has_nan_loss and any(not weight for _, weight in run.reference.losses(run.everyone[run.rank])):
        found.append("empty")
    if run.specification.accumulates:
        why = not_additive(run.reference.losses, list(run.everyone[0]))
        found += [f"not additive {why}"] if why and draws.count == drawn else []
    return tuple(found)


def _average_inside(steps: Sequence[Taken]) -> None:
    """Optimizers that average over ranks inside `step()`: gradients differ, weights after it do not. Take the mean.

    Collective: every rank must call it.
    """
    own = [(step.moved, step.after) for step in steps]
    everyone: list[list[tuple[bool, str]]] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    columns = list(zip(*everyone, strict=False))
    moving = [column for column in columns if any(moved for moved, _ in column)]
    if not moving or any(len({after for _, after in column}) > 1 for column in moving):
        return
    for step in steps[: len(columns)]:
        for gradient in step.gradient.values():
            dist.all_reduce(gradient)
            gradient /= len(everyone)


def _collectives() -> int:
    """How many collectives this rank has begun, DDP's own included."""
    # torch 2.9 to 2.14: the number by which gloo and NCCL tell that ranks have parted; DDP's are counted in C++ alone.
    groups: Any = dist.distributed_c10d._world.pg_map
    return int(sum(group._get_sequence_number_for_group() for group in groups))


def _bound(
    scenario: Scenario, reference: Reference, weights: dict[str, Tensor], everyone: Sequence[Sequence[Any]]
) -> float | None:
    if scenario.max_norm_share is None:
        return None
    whole = reference.whole_model(weights)
    first = [reference.micro_batches(whole, batches[: scenario.micro_batches]) for batches in everyone]
    return scenario.max_norm_share * float(torch.linalg.vector_norm(exact(first)))


def _set(specification: Specification, scenario: Scenario, max_norm: float | None) -> None:
    module: Any = specification.module
    if specification.accumulates:
        module.ACCUMULATE = scenario.micro_batches
    if specification.epochs:
        module.EPOCHS = scenario.epochs
    if specification.clips:
        module.MAX_NORM = NEVER_CLIPS if max_norm is None else max_norm


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
