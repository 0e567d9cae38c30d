"""Clips at the wrong moment: before unscale, before ranks are averaged, in mid-window, after the step."""

from collections.abc import Iterator, Sequence

from tightgrad_lab.audit.script.finding import Remark
from tightgrad_lab.audit.script.records import Clip, Ledger
from tightgrad_lab.audit.script.windows import Window

SAME = 1e-4


def check_clips(ledgers: Sequence[Ledger], windows: Sequence[Window]) -> Iterator[Remark]:
    """Judge all clips of one optimizer's parameters, each fault once."""
    seen: set[str] = set()
    for remark in _all(ledgers, windows):
        if remark.kind not in seen:
            seen.add(remark.kind)
            yield remark


def _all(ledgers: Sequence[Ledger], windows: Sequence[Window]) -> Iterator[Remark]:
    for window in windows:
        step = window.steps[0]
        clips = window.clips[0]
        for place, clip in enumerate(clips):
            if clip.scaled:
                cause = f"clip ran before unscale: the bound of {clip.max_norm:g} meets gradients times the loss scale"
                yield _wrong(
                    "clip before unscale", cause, clip, window, "call scaler.unscale_(optimizer) before the clip."
                )
            cleared = any(one.fresh for one in ledgers[0].backwards[clip.backwards : clip.backwards + 1])
            if clip.backwards < step.backwards and not cleared and set(clip.parameters) <= set(step.parameters):
                early = sum(one.backwards < step.backwards for one in clips)
                cause = (
                    f"clip in mid-window: {early} of {len(clips)} clips of this window come before its last backward"
                )
                yield _wrong("clip in mid-window", cause, clip, window, "clip once, after the window's last backward.")
            norms = [own[place].norm for own in window.clips if len(own) > place]
            apart = len(norms) > 1 and max(norms) - min(norms) > SAME * max(norms)
            if apart and max(norms) > clip.max_norm and clip.backwards == step.backwards:
                words = f"norms are {min(norms):.3g} to {max(norms):.3g}"
                cause = f"clip ran before gradients were averaged over ranks: their {words}"
                yield _wrong("clip each rank", cause, clip, window, "clip the averaged gradient.")
        if clips:
            continue
        late = _late(ledgers[0], window)
        if late is not None:
            cause = "clipping does nothing: it runs after optimizer.step"
            cure = "call clip_grad_norm_ after the last backward and before optimizer.step."
            yield _wrong("clip after step", cause, late, window, cure)


def _late(ledger: Ledger, window: Window) -> Clip | None:
    """A clip between this step and the next backward, of parameters that this step is over."""
    step = window.steps[0]
    for clip in ledger.clips:
        after = clip.backwards == step.backwards and clip.steps > 0 and ledger.steps[clip.steps - 1] is step
        if after and set(clip.parameters) <= set(step.parameters) and clip.norm > 0:
            return clip
    return None


def _wrong(kind: str, cause: str, clip: Clip, window: Window, cure: str) -> Remark:
    where = f"{window.ranks} rank{'s' if window.ranks > 1 else ''}, step {window.number + 1}"
    return Remark(kind, cause, clip.place, where, cure)
