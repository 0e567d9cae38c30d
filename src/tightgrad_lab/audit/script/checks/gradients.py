"""The second and third check: what optimizers take, against the mean over ranks of all gradients that were computed.

If the two are not proportional, a least-squares fit says what was taken of each micro-batch.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tightgrad_lab.audit.script.finding import Remark, short
from tightgrad_lab.audit.script.records import Backward, Clip
from tightgrad_lab.audit.script.windows import Shares, Taken, Window, factor, fitted, numbers

NOTHING = 0.02
"""A share below this is none."""
Kept = dict[int, list[list[float]]]
"""Number of the window -> what was taken of each rank's backwards; 1 is due."""


def check_gradients(windows: Sequence[Window], used: set[int]) -> tuple[list[Remark], Kept]:
    """Judge all steps of one optimizer.

    Args:
        windows: of the optimizer.
        used: ids of backwards that another optimizer takes.
    """
    found: list[Remark] = []
    kept: Kept = {}
    for window in windows:
        if any(step.closure for step in window.steps):
            continue
        seen = numbers(window)
        if seen is None:
            continue
        if seen.inside:
            found.append(_note("averages inside", f"{window.steps[0].kind} averages over ranks inside step()", window))
        remarks, shares = _judge(window, seen, used)
        found += remarks
        if shares is not None:
            kept[window.number] = shares
        if any(one.kind == "no sync" for one in remarks):
            break  # weights are no longer the same
    cleared = [one for one in found if one.kind == "cleared"]
    if 2 * len(cleared) < len(windows):  # a step that was skipped now and then
        words = "gradients of a window are thrown away, and no step takes them"
        notes = [replace(one, kind="thrown away", cause=words, cure="", wrong=False) for one in cleared]
        found = [one for one in found if one.kind != "cleared"] + notes
    return found, kept


def _judge(window: Window, seen: Taken, used: set[int]) -> tuple[list[Remark], list[list[float]] | None]:
    if not (seen.same or seen.inside):
        return _ranks_differ(window, seen), None
    scale, error = factor(seen.taken[0], seen.mean)
    if error <= window.tolerance:
        return _scaled(window, seen, scale)
    shares = fitted(seen, 0)
    if shares.error > window.tolerance and window.length > 1 and all(one.fresh for one in window.backwards[0]):
        words = "the script puts together by hand what the optimizer takes, from gradients that it clears in between"
        return [_note("put together", words, window)], [[0.0] * len(own) for own in window.backwards]
    if shares.error > window.tolerance:
        return _unexplained(window, seen), None
    return _fit(window, shares, used)


def _scaled(window: Window, seen: Taken, scale: float) -> tuple[list[Remark], list[list[float]] | None]:
    """The optimizer takes what is due, times one number."""
    if abs(scale - 1) <= window.tolerance:
        return [], None
    coefficient = _clip_coefficient(window.clips[0], window)
    if not coefficient:
        return [], None  # of a norm that is inf
    if abs(scale / coefficient - 1) <= 5 * window.tolerance:
        return [], None
    loss_scale = window.backwards[0][-1].scale
    place = window.steps[0].place
    if not scale:
        cause = f"the gradients of all {window.length} micro-batches are lost: they are cleared before the step"
        cure = "call zero_grad after optimizer.step, or before the window's first backward."
        return [_wrong("cleared", cause, place, window, cure)], None
    if loss_scale != 1 and abs(scale / loss_scale - 1) <= 5 * window.tolerance:
        cause = f"the gradient is {loss_scale:g} times too large: the loss scale is still in it"
        cure = "step through the scaler, or call scaler.unscale_ before."
        return [_wrong("scaled", cause, place, window, cure)], None
    if loss_scale != 1 and abs(scale * loss_scale / coefficient - 1) <= 5 * window.tolerance:
        cause = f"the gradient is {loss_scale:g} times too small: it is unscaled twice"
        cure = "unscale once: scaler.unscale_ before the clip, and scaler.step, which then leaves it alone."
        return [_wrong("unscaled twice", cause, place, window, cure)], None
    if loss_scale == 1 and abs(scale * window.steps[0].unscaled / coefficient - 1) <= 5 * window.tolerance:
        unscaled = window.steps[0].unscaled
        cause = f"the gradient is {unscaled:g} times too small: GradScaler divides by its scale, and the loss has none"
        cure = "call scaler.scale(loss).backward() for every loss."
        return [_wrong("never scaled", cause, place, window, cure)], None
    if loss_scale != 1 and any(clip.scaled for clip in window.clips[0]):
        return [], None  # said by the check of clips
    if window.ranks > 1 and abs(scale / window.ranks / coefficient - 1) <= 5 * window.tolerance:
        cause = f"the gradient is {scale:.3g} times its due: it is summed over {window.ranks} ranks, and not averaged"
        return [_wrong("mass", cause, place, window, "divide by the number of ranks.")], None
    shares = [[scale / coefficient] * len(own) for own in window.backwards]
    if scale < 1:
        return [_note("scaled by hand", f"the gradient is scaled by {scale:.3g} before the step", window)], shares
    cause = f"the gradient is {scale:.3g} times what the losses that backward was called on give"
    return [_wrong("scale", cause, place, window, "look for a factor between backward and step.")], None


def _clip_coefficient(clips: Sequence[Clip], window: Window) -> float:
    found = 1.0
    for clip in clips:
        if set(clip.parameters) >= set(window.parameters()) and not clip.by_value:
            found *= min(1.0, clip.max_norm / (clip.norm + 1e-6))
    return found


def _ranks_differ(window: Window, seen: Taken) -> list[Remark]:
    place = window.steps[0].place
    own = [np.sum(gradients, axis=0) for gradients in seen.gradients]
    if all(factor(taken, due)[1] <= window.tolerance for taken, due in zip(seen.taken, own, strict=True)):
        cause = "ranks differ: each steps with its own gradient, and nothing is averaged over them"
        cure = "run the last micro-batch's forward and backward outside no_sync, on the wrapped model."
        return [_wrong("no sync", cause, place, window, cure)]
    fits = [fitted(seen, rank) for rank in range(window.ranks)]
    if all(fit.error <= window.tolerance for fit in fits):
        others = [
            [abs(one) > NOTHING for rank, shares in enumerate(fit.by_rank) if rank != own_rank for one in shares]
            for own_rank, fit in enumerate(fits)
        ]
        cause = f"ranks differ: rank 0 takes {sum(others[0])} of {len(others[0])} micro-batches of other ranks"
        return [_wrong("no sync", cause, place, window, "average the accumulated gradient over ranks, all of it.")]
    return [_wrong("no sync", "ranks differ: they step with different gradients", place, window, "")]


def _fit(window: Window, fit: Shares, used: set[int]) -> tuple[list[Remark], list[list[float]] | None]:
    if any(clip.backwards < window.steps[0].backwards for clip in window.clips[0]):
        return [], None  # said by the check of clips
    found: list[Remark] = []
    place = window.steps[0].place
    level = max((one for shares in fit.by_rank for one in shares), default=1.0)
    lost = [
        backward
        for backwards, shares in zip(window.backwards, fit.by_rank, strict=True)
        for backward, share in zip(backwards, shares, strict=True)
        if abs(share) < NOTHING * level
    ]
    total = sum(map(len, window.backwards))
    lost = [one for one in lost if not one.apart]
    if lost and not _meant(lost, window, used):
        cause = (
            f"{len(lost)} of {total} micro-batches are lost: their gradients are cleared before the step takes "
            f"{total - len(lost)}"
        )
        cure = "call zero_grad after optimizer.step, not before every backward."
        found.append(_wrong("cleared", cause, lost[0].place, window, cure))
    left = sum(abs(one) > NOTHING * level for one in fit.earlier[0])
    if left:
        cause = f"{left} micro-batches of steps before are taken again: their gradients were not cleared"
        found.append(_wrong("not cleared", cause, place, window, "call zero_grad after every step."))
    rest = [one for shares in fit.by_rank for one in shares if abs(one) >= NOTHING * level]
    if not found and not lost and max(rest) - min(rest) > 5 * window.tolerance * max(map(abs, rest)):
        cause = f"micro-batches are taken between {min(rest):.3g} and {max(rest):.3g} times"
        found.append(_note("uneven", cause, window))
    return found, [[0.0 if abs(one) < NOTHING * level else 1.0 for one in shares] for shares in fit.by_rank]


def _meant(lost: Sequence[Backward], window: Window, used: set[int]) -> bool:
    """Whether gradients are thrown away on purpose: SAM's first, a search's, or another optimizer's."""
    if all(id(one) in used or one.in_step for one in lost):
        return True
    return any(backward.moved for backwards in window.backwards for backward in backwards[1:])


def _unexplained(window: Window, seen: Taken) -> list[Remark]:
    """No combination of the micro-batches: perhaps parameters are scaled one by one."""
    numbers_of = window.parameters()
    sizes = {number: len(values) for step in window.steps for number, values in step.taken.items()}
    offsets, start = {}, 0
    for number in (one for one in numbers_of if one in sizes):
        offsets[number] = slice(start, start + sizes[number])
        start += sizes[number]
    if start != len(seen.mean):
        return [_note("other", "the optimizer takes something else than a combination of the gradients", window)]
    factors = {n: factor(seen.taken[0][part], seen.mean[part]) for n, part in offsets.items()}
    if any(error > window.tolerance for _, error in factors.values()):
        clips = [clip for clip in window.clips[0] if clip.backwards < window.steps[0].backwards]
        if clips:
            return []  # said by the check of clips
        by_value = [clip for clip in window.clips[0] if clip.by_value and clip.norm > clip.max_norm]
        if by_value:
            words = (
                f"clip_grad_value_ bounds each element of the gradient by {by_value[0].max_norm:g}, which turns it; a "
                "bound of its norm is clip_grad_norm_"
            )
            return [_note("clip by value", words, window)]
        words = "the optimizer takes something else than a combination of the gradients (a hook, noise, compression?)"
        return [_note("other", words, window)]
    levels: list[float] = []
    largest = max((abs(scale) for scale, _ in factors.values()), default=0.0)
    for scale, _ in factors.values():
        if not any(abs(scale - level) <= 5 * window.tolerance * max(abs(level), 1e-12) for level in levels):
            levels.append(scale)
    zero = [level for level in levels if abs(level) < NOTHING * largest]
    if zero and len(levels) == 2:
        return [_note("partly zero", "some parameters get no gradient, although one was computed", window)]
    subsets = [one for one in window.clips[0] if set(one.parameters) < set(numbers_of) and not one.by_value]
    covered = {number for clip in subsets for number in clip.parameters}
    bounds = {clip.max_norm for clip in subsets}
    if subsets and len(bounds) == 1:
        if covered >= set(numbers_of):
            cause = f"the parameters are clipped in {len(subsets)} groups, each by its own norm"
        else:
            cause = f"only {len(covered)} of {len(numbers_of)} parameters are clipped"
        cure = "pass all parameters of the optimizer to one call of clip_grad_norm_."
        places = {clip.place for clip in subsets}
        if len(subsets) == len(places) > 1 and covered >= set(numbers_of):
            return [_note("clipped in groups", f"{cause}, at places of their own", window)]
        return [_wrong("clipped in groups", cause, subsets[0].place, window, cure)]
    words = f"parameters are scaled by {len(levels)} different numbers, {min(levels):.3g} to {max(levels):.3g}"
    return [_note("scaled apart", words, window)]


def _wrong(kind: str, cause: str, place: str, window: Window, cure: str) -> Remark:
    return Remark(kind, cause, place, _where(window), cure)


def _note(kind: str, words: str, window: Window) -> Remark:
    return Remark(kind, f"{words} ({short(window.steps[0].place)})", window.steps[0].place, _where(window), wrong=False)


def _where(window: Window) -> str:
    return f"{window.ranks} rank{'s' if window.ranks > 1 else ''}, step {window.number + 1}"
