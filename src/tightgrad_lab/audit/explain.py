"""Which known mistakes would have given what an optimizer took."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tightgrad_lab.audit.candidates import MicroBatches, Window, bases, exact, factors
from tightgrad_lab.audit.clipped import clip, clip_mistakes, groups
from tightgrad_lab.audit.patterns import named
from tightgrad_lab.audit.scenario import NEVER_CLIPS

Pieces = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """One window beside what else can have entered it.

    Args:
        window: what was taken, and the micro-batches that should have made it.
        max_norm: the bound if clipping is active.
        pieces: gives the parts of a vector by parameter name.
        tied: how often each tied parameter is reached.
        parts: names of each optimizer's parameters.
        tolerance: relative difference up to which two gradients are the same.
        off_by_one: gives the micro-batches that end one after the window's first; empty if that cannot be.
        leaked: gives the window's micro-batches and those left over from the epoch before; empty if there are none.
    """

    window: Window
    max_norm: float | None
    pieces: Pieces
    tied: Mapping[str, int]
    parts: Sequence[Sequence[str]]
    tolerance: float
    off_by_one: Callable[[], MicroBatches]
    leaked: Callable[[], MicroBatches]


def right(step: Step) -> list[Tensor]:
    """What the optimizers may take: one, or two where several optimizers may be clipped together or one by one."""
    whole = exact(step.window.micro_batches)
    if step.max_norm is None:
        return [whole]
    found = [clip(whole, step.max_norm)]
    if len(step.parts) > 1:
        pieces = step.pieces(whole)
        each = [torch.cat([pieces[name] for name in names]) for names in step.parts]
        found.append(torch.cat([clip(piece, step.max_norm) for piece in each]))
    return found


def explain(step: Step) -> list[str]:
    """Mistakes that would have given what was taken, the plainest first."""
    if step.max_norm is not None:
        return _clipping(step, step.max_norm)
    window, tolerance = step.window, step.tolerance
    found = _made_of(window, tolerance)
    if found:
        return found
    if window.before is not None and (found := _made_of(window, tolerance, window.before)):
        return [f"after {name}" for name in found]
    if found := _leaked(step):
        return found
    if found := _scaled_to_the_bound(step):
        return found
    gain = _power_of_two(window.taken, exact(window.micro_batches), tolerance)
    if gain:
        return [f"exact | S={gain:g}"]
    return _by_parameter(step) or _off_by_one(step) or _by_shares(window, tolerance)


def _made_of(window: Window, tolerance: float, before: Tensor | None = None) -> list[str]:
    taken = window.taken if before is None else window.taken - before
    by_name = factors(window)
    return [
        f"{base} | {factor}"
        for base, value in bases(window)
        for factor, scale in by_name.items()
        if distance(taken, value * scale) <= tolerance
    ]


def _by_shares(window: Window, tolerance: float) -> list[str]:
    """Micro-batches that count differently by their place, in least squares."""
    everything = [micro for rank in window.micro_batches for micro in rank]
    matrix = torch.stack([micro.gradient for micro in everything], dim=1)
    if len(everything) < 2 or matrix.shape[0] <= matrix.shape[1]:
        return []
    shares = torch.linalg.lstsq(matrix, window.taken[:, None], driver="gelsd").solution
    if distance((matrix @ shares)[:, 0], window.taken) > tolerance:
        return []
    if int(torch.linalg.matrix_rank(matrix)) < len(shares):
        return []
    own = shares[:, 0].split([len(rank) for rank in window.micro_batches])
    for by_weight in (False, True):
        counts = [
            [float(one) / (micro.weight if by_weight else 1.0) for one, micro in zip(part, rank, strict=True)]
            for part, rank in zip(own, window.micro_batches, strict=True)
            if all(micro.weight for micro in rank)
        ]
        found = {named(one, window.length) for one in counts}
        if len(counts) == window.ranks and len(found) == 1 and (words := found.pop()):
            return [f"apart {words}"]
    total = sum(micro.weight for micro in everything)
    if not all(micro.weight for micro in everything):
        return []
    due = [float(one) * total / micro.weight for one, micro in zip(shares[:, 0], everything, strict=True)]
    if max(due) - min(due) <= 5 * tolerance * max(map(abs, due)):
        return []  # all alike: no matter of micro-batches
    return [f"shares {', '.join(f'{one:.3g}' for one in due)}"]


def _leaked(step: Step) -> list[str]:
    """Micro-batches of the epoch before are still in the gradient."""
    micro_batches = step.leaked()
    if not micro_batches:
        return []
    window = Window(micro_batches, step.window.rank, step.window.size, step.window.taken, None)
    return ["leaked"] if _made_of(window, step.tolerance) else []


def _clipping(step: Step, max_norm: float) -> list[str]:
    window, tolerance = step.window, step.tolerance
    mistakes = clip_mistakes(window, max_norm, step.pieces, step.tied)
    found = [f"clip {name}" for name, value in mistakes if distance(window.taken, value) <= tolerance]
    known = {name: base for name, base in bases(window) if name != "exact"}
    found += [
        f"{name} | 1" for name, base in known.items() if distance(window.taken, clip(base, max_norm)) <= tolerance
    ]
    return found or _partly_clipped(step, max_norm) or _off_by_one(step) or _by_shares(window, tolerance)


def _off_by_one(step: Step) -> list[str]:
    """Whether the window ends after the first micro-batch of its place: what `if i % K == 0` gives."""
    micro_batches = step.off_by_one()
    if not micro_batches:
        return []
    length = len(micro_batches[0])
    mean = torch.stack([micro.gradient for rank in micro_batches for micro in rank]).mean(0)
    likely = (mean * (length / step.window.size), mean, exact(micro_batches))
    return ["off by one"] if any(distance(step.window.taken, one) <= step.tolerance for one in likely) else []


def _scaled_to_the_bound(step: Step) -> list[str]:
    """Where nothing is to be clipped, the gradient is as long as the bound all the same."""
    taken = step.window.taken
    norm = float(torch.linalg.vector_norm(taken))
    meant = exact(step.window.micro_batches)
    size = torch.linalg.vector_norm(meant)
    if abs(norm - NEVER_CLIPS) > step.tolerance * NEVER_CLIPS or not size > 0:
        return []
    return ["clip always"] if distance(taken / norm, meant / size) <= step.tolerance else []


def _power_of_two(taken: Tensor, meant: Tensor, tolerance: float) -> float:
    """The power of two, at least 8 or at most 1/8, that `taken` is `meant` multiplied by; 0 if it is none."""
    ratio = float(torch.linalg.vector_norm(taken) / torch.linalg.vector_norm(meant).clamp_min(1e-300))
    if not ratio or 1 / 7 < ratio < 7:
        return 0.0
    power = 2.0 ** round(float(np.log2(ratio)))
    return power if distance(taken, meant * power) <= tolerance else 0.0


def _by_parameter(step: Step) -> list[str]:
    """Some parameters are right and all others share one other explanation."""
    window = step.window
    taken, meant = step.pieces(window.taken), step.pieces(exact(window.micro_batches))
    wrong = [name for name in taken if distance(taken[name], meant[name]) > step.tolerance]
    if not wrong or len(wrong) == len(taken):
        return []
    for base, value in bases(window):
        pieces = step.pieces(value)
        for factor, scale in factors(window).items():
            if all(distance(taken[name], pieces[name] * scale) <= step.tolerance for name in wrong):
                return [f"parameters {base} | {factor} | {', '.join(wrong)}"]
    if all(not taken[name].any() for name in wrong):
        return [f"no gradient {', '.join(wrong)}"]
    return []


def _partly_clipped(step: Step, max_norm: float) -> list[str]:
    """Some parameters are not clipped, the others are clipped by their own norm."""
    taken, meant = step.pieces(step.window.taken), step.pieces(exact(step.window.micro_batches))
    together = groups(taken, meant, max_norm, step.tolerance)
    if together:
        return [f"clip groups {len(together)}"]
    free = [name for name in taken if distance(taken[name], meant[name]) <= step.tolerance]
    if not free or len(free) == len(taken):
        return []
    norm = torch.linalg.vector_norm(torch.cat([meant[name] for name in taken if name not in free]))
    limited = [name for name in taken if name not in free]
    if all(distance(taken[name], clip(meant[name], max_norm, norm)) <= step.tolerance for name in limited):
        return [f"clip partly {', '.join(free)}"]
    return []


def distance(taken: Tensor, meant: Tensor) -> float:
    """Norm of the difference, relative to what was meant."""
    norm = float(torch.linalg.vector_norm(meant))
    difference = float(torch.linalg.vector_norm(taken - meant))
    return difference / norm if norm else difference
