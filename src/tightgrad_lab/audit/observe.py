"""One rank's side of the audit: runs the user's loop and compares each optimizer step with the reference."""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightgrad_lab.audit.candidates import Window, bases, exact, factors
from tightgrad_lab.audit.clipped import clip, clip_mistakes, groups
from tightgrad_lab.audit.reference import MicroBatch, Reference, without_dropout
from tightgrad_lab.audit.scenario import NEVER_CLIPS, Scenario
from tightgrad_lab.audit.specification import Specification
from tightgrad_lab.audit.watch import Taken, watched, weights_of

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
    """

    scenario: int
    rank: int
    steps: int
    weights: str
    observations: tuple[Observation, ...]


def observe(specification: Specification, index: int, scenario: Scenario, rank: int) -> RankReport:
    """Run one scenario on this rank. Collective: every rank must call it."""
    _seed(SEED)
    batches = specification.make_batches(scenario.ranks * scenario.count, scenario.ragged)
    if len(batches) != scenario.ranks * scenario.count:
        raise ValueError(f"make_batches({scenario.ranks * scenario.count}, ...) gave {len(batches)} micro-batches")
    own = batches[rank :: scenario.ranks]
    _seed(SEED + 1)
    model = without_dropout(specification.build_model())
    reference = Reference(specification, model)
    everyone = [batches[other :: scenario.ranks] for other in range(scenario.ranks)]
    windows = scenario.windows()
    max_norm = _bound(specification, scenario, reference, weights_of(model), everyone)
    _set(specification, scenario, max_norm)
    with watched(model) as taken:
        specification.train(model, own)
    observations = []
    before: Tensor | None = None
    for number, (window, step) in enumerate(zip(windows, taken, strict=False)):
        if len(taken) > len(windows) or not all(bool(torch.isfinite(one).all()) for one in step.weights.values()):
            break  # what follows has no reference
        micro_batches = _micro_batches(reference, step, everyone, window)
        gradient = reference.vector(step.gradient)
        one = Window(micro_batches, rank, scenario.micro_batches, gradient, before)
        seen = _compare(specification, one, step, reference, max_norm, (index, number, rank))
        if not seen.ok and not seen.explanations and _is_off_by_one(one, reference, step, everyone, number, seen):
            seen = replace(seen, explanations=("off by one",))
        observations.append(seen)
        before = gradient
    return RankReport(index, rank, len(taken), _digest(weights_of(model)), tuple(observations))


def _compare(
    specification: Specification,
    window: Window,
    step: Taken,
    reference: Reference,
    max_norm: float | None,
    place: tuple[int, int, int],
) -> Observation:
    right = exact(window.micro_batches)
    if max_norm is not None:
        right = clip(right, max_norm)
    tolerance = TOLERANCE[specification.precision]
    taken = window.taken
    error = _distance(taken, right)
    ok = error <= tolerance
    size = float(right.square().sum())
    dtype = _DTYPES.get(step.dtype, str(step.dtype))
    names: list[str] = []
    if not ok and not bool(torch.isfinite(taken).all()):
        return Observation(*place, math.nan, math.nan, math.inf, False, ("not finite",), dtype, specification.precision)
    if not ok:
        names = _explain(window, max_norm, reference, tolerance)
        if not names and tolerance < error < LOW_PRECISION_LIMIT and dtype != "float32":
            names = [f"low precision {dtype}"]
        if not names and step.missing:
            names = [f"no gradient {', '.join(step.missing)}"]
    norms = float(torch.linalg.vector_norm(taken) * torch.linalg.vector_norm(right))
    inner = float(taken @ right)
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


def _explain(window: Window, max_norm: float | None, reference: Reference, tolerance: float) -> list[str]:
    if max_norm is not None:
        mistakes = clip_mistakes(window, max_norm, reference.pieces, reference.tied)
        found = [f"clip {name}" for name, value in mistakes if _distance(window.taken, value) <= tolerance]
        known = {name: base for name, base in bases(window) if name != "exact"}
        found += [
            f"{name} | 1" for name, base in known.items() if _distance(window.taken, clip(base, max_norm)) <= tolerance
        ]
        return found or _partly_clipped(window, max_norm, reference, tolerance)
    by_name = factors(window)
    found = []
    for previous in ("", "after "):
        taken = window.taken
        if previous:
            if window.before is None:
                break
            taken = taken - window.before
        for base, value in bases(window):
            for factor, scale in by_name.items():
                if _distance(taken, value * scale) <= tolerance:
                    found.append(f"{previous}{base} | {factor}")
        if found:
            return found
    found = _scaled_to_the_bound(window, reference, tolerance)
    if found:
        return found
    gain = _power_of_two(window.taken, exact(window.micro_batches), tolerance)
    return [f"exact | S={gain:g}"] if gain else _by_parameter(window, reference, tolerance)


def _is_off_by_one(
    window: Window, reference: Reference, step: Taken, everyone: Sequence[Sequence[Any]], number: int, seen: Observation
) -> bool:
    """Whether the window ends after the first micro-batch of its place: what `if i % K == 0` gives."""
    size = window.size
    if size == 1:
        return False
    places = range(max(0, (number - 1) * size + 1), number * size + 1)
    micro_batches = _micro_batches(reference, step, everyone, places)
    mean = torch.stack([micro.gradient for rank in micro_batches for micro in rank]).mean(0)
    likely = (mean * (len(places) / size), mean, exact(micro_batches))
    return any(_distance(window.taken, one) <= TOLERANCE[seen.precision] for one in likely)


def _scaled_to_the_bound(window: Window, reference: Reference, tolerance: float) -> list[str]:
    """Where nothing is to be clipped, the gradient is as long as the bound all the same."""
    norm = float(torch.linalg.vector_norm(window.taken))
    right = exact(window.micro_batches)
    size = torch.linalg.vector_norm(right)
    if abs(norm - NEVER_CLIPS) > tolerance * NEVER_CLIPS or not size > 0:
        return []
    return ["clip always"] if _distance(window.taken / norm, right / size) <= tolerance else []


def _power_of_two(taken: Tensor, right: Tensor, tolerance: float) -> float:
    """The power of two, at least 16, that `taken` is `right` multiplied by; 0 if it is none."""
    ratio = float(torch.linalg.vector_norm(taken) / torch.linalg.vector_norm(right).clamp_min(1e-300))
    if ratio < 8:
        return 0.0
    power = 2.0 ** round(float(np.log2(ratio)))
    return power if _distance(taken, right * power) <= tolerance else 0.0


def _by_parameter(window: Window, reference: Reference, tolerance: float) -> list[str]:
    """Some parameters are right and all others share one other explanation."""
    taken, right = reference.pieces(window.taken), reference.pieces(exact(window.micro_batches))
    wrong = [name for name in taken if _distance(taken[name], right[name]) > tolerance]
    if not wrong or len(wrong) == len(taken):
        return []
    for base, value in bases(window):
        pieces = reference.pieces(value)
        for factor, scale in factors(window).items():
            if all(_distance(taken[name], pieces[name] * scale) <= tolerance for name in wrong):
                return [f"parameters {base} | {factor} | {', '.join(wrong)}"]
    if all(not taken[name].any() for name in wrong):
        return [f"no gradient {', '.join(wrong)}"]
    return []


def _partly_clipped(window: Window, max_norm: float, reference: Reference, tolerance: float) -> list[str]:
    """Some parameters are not clipped, the others are clipped by their own norm."""
    whole = exact(window.micro_batches)
    taken, right = reference.pieces(window.taken), reference.pieces(whole)
    together = groups(taken, right, max_norm, tolerance)
    if together:
        return [f"clip groups {len(together)}"]
    free = [name for name in taken if _distance(taken[name], right[name]) <= tolerance]
    if not free or len(free) == len(taken):
        return []
    norm = torch.linalg.vector_norm(torch.cat([right[name] for name in taken if name not in free]))
    limited = [name for name in taken if name not in free]
    if all(_distance(taken[name], clip(right[name], max_norm, norm)) <= tolerance for name in limited):
        return [f"clip partly {', '.join(free)}"]
    return []


def _bound(
    specification: Specification,
    scenario: Scenario,
    reference: Reference,
    weights: dict[str, Tensor],
    everyone: Sequence[Sequence[Any]],
) -> float | None:
    if scenario.max_norm_share is None:
        return None
    reference.load(weights)
    first = [[reference.micro_batch(batch) for batch in batches[: scenario.micro_batches]] for batches in everyone]
    return scenario.max_norm_share * float(torch.linalg.vector_norm(exact(first)))


def _set(specification: Specification, scenario: Scenario, max_norm: float | None) -> None:
    if specification.accumulates:
        specification.module.ACCUMULATE = scenario.micro_batches  # type: ignore[attr-defined]
    if specification.clips:
        bound = NEVER_CLIPS if max_norm is None else max_norm
        specification.module.MAX_NORM = bound  # type: ignore[attr-defined]


def _micro_batches(
    reference: Reference, step: Taken, everyone: Sequence[Sequence[Any]], window: range
) -> list[list[MicroBatch]]:
    reference.load(step.weights)
    return [[reference.micro_batch(batches[place]) for place in window] for batches in everyone]


def _distance(taken: Tensor, right: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(right))
    difference = float(torch.linalg.vector_norm(taken - right))
    return difference / norm if norm else difference


def _digest(weights: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in weights.values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
