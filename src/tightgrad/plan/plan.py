"""A plan: which accumulation, clipping and compression run. Frozen, JSON, and refused when its parts cannot run
together.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from tightgrad.accumulate import Accumulate
from tightgrad.clip import GlobalNorm
from tightgrad.core.check import check_choice, check_number
from tightgrad.core.clipper import Held
from tightgrad.core.config import from_config, method_from_config, to_config
from tightgrad.core.errors import ConfigError, IncompatiblePlanError
from tightgrad.core.kinds import Setting, check_kind, instead, spelling
from tightgrad.core.protocols import Clipper, Codec, Feedback, Reducer
from tightgrad.core.types import Slot
from tightgrad.plan.guard import Guard
from tightgrad.plan.registry import check_ids, method
from tightgrad.scaling.loss_scale import LossScale
from tightgrad.scaling.noise_scale import NoiseScale

PLAN_VERSION = 1
FALLBACKS = (None, "dense")
OVERLAPS = ("auto", "backward", "none")


@dataclass(frozen=True)
class Compress:
    """Says what crosses the network, and in which form.

    Args:
        codec: how a gradient is encoded; None sends float32.
        reducer: how gradients are summed over ranks; None takes the one on the codec's card, or dense without a codec.
        feedback: what happens to what compression leaves out; None drops it.
        overlap: when it runs. "backward" reduces each bucket of a DistributedDataParallel module as soon as its
            gradients are ready, while the last micro-batch's backward goes on; "none" reduces after it, in one go;
            "auto" is "none" under DistributedDataParallel, and what the wrapper allows elsewhere. What is delivered is
            bitwise the same.
        fallback: "dense" sends a step's gradients again, uncompressed, when its relative error (all that compression
            left out over all that was to be sent, see `StepRecord.relative_error`) is above `max_relative_error`;
            None never does, and measures nothing. Under FSDP2 each FSDP module's gradients are judged by themselves.
        max_relative_error: bound of the fallback, above 0; None without one.

    Raises:
        IncompatiblePlanError: the reducer cannot run with the codec.
    """

    codec: Codec | None = None
    reducer: Reducer | None = None
    feedback: Feedback | None = None
    overlap: str = "auto"
    fallback: str | None = None
    max_relative_error: float | None = None

    def __post_init__(self) -> None:
        check_choice("overlap", self.overlap, OVERLAPS)
        for name in _COMPRESS_SETTINGS:
            check_kind(name, getattr(self, name), "Compress", _COMPRESS_SETTINGS, method)
        if self.reducer is None:
            if self.codec is not None and not self.codec.reducer:
                raise ConfigError(
                    f"the card of {self.codec.card.id} names no reducer; pass reducer=... as well, or name one on the "
                    'card: "gather" takes every codec, "two_shot" those whose tensors may be cut.'
                )
            object.__setattr__(self, "reducer", method(self.codec.reducer if self.codec else "dense")())
        reducer = self.resolved().reducer
        reason = reducer.refuses(self.codec)
        if reason:
            raise IncompatiblePlanError(f"{reason}.")
        if self.feedback is not None and reducer.leaves_nothing:
            raise IncompatiblePlanError(
                f"{reducer.card.id} leaves nothing behind, so feedback has no use; drop one of them."
            )
        reason = self.feedback.refuses(self.codec, reducer) if self.feedback is not None else None
        if reason:
            raise IncompatiblePlanError(f"{reason}.")
        self._check_fallback(reducer)

    def resolved(self) -> "ResolvedCompress":
        """Return the settings as they run, with the reducer that was chosen."""
        assert self.reducer is not None  # __post_init__ has chosen it
        return ResolvedCompress(self.codec, self.reducer, self.feedback, self.overlap, self.max_relative_error)

    def _check_fallback(self, reducer: Reducer) -> None:
        check_choice("fallback", self.fallback, FALLBACKS)
        if (self.fallback is None) != (self.max_relative_error is None):
            raise ConfigError(
                f"fallback={self.fallback!r} and max_relative_error={self.max_relative_error!r} belong together; give "
                "both, or none."
            )
        if self.max_relative_error is not None:
            check_number("max_relative_error", self.max_relative_error, above=0.0)
            if reducer.leaves_nothing:
                raise IncompatiblePlanError(f"{reducer.card.id} leaves nothing out, so a fallback has no use; drop it.")


@dataclass(frozen=True, slots=True)
class ResolvedCompress:
    """Holds what crosses the network, with a reducer in any case.

    Args:
        codec: how a gradient is encoded; None sends float32.
        reducer: how gradients are summed over ranks.
        feedback: what happens to what compression leaves out; None drops it.
        overlap: when it runs, as in `Compress`.
        max_relative_error: above it a step is sent again, densely; None measures nothing.
    """

    codec: Codec | None
    reducer: Reducer
    feedback: Feedback | None
    overlap: str
    max_relative_error: float | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """Holds a plan as it runs, with a default for each part that was left out.

    Args:
        accumulate: how micro-batches make a step.
        compress: what crosses the network.
        clip: what limits the delivered gradient; None leaves it.
        local_clip: bound of what each rank adds, times the root of their number; None bounds nothing.
        noise_scale: how the gradient noise scale is measured; None measures nothing.
        guard: what happens at inf or NaN.
        slots: what the methods remember, by slot name.
        is_empty: whether this is plain PyTorch.
        has_compress: whether the plan itself says what crosses the network, and not the wrapper.
    """

    accumulate: Accumulate
    compress: ResolvedCompress
    clip: Clipper | None
    local_clip: float | None
    noise_scale: NoiseScale | None
    guard: Guard
    slots: Mapping[str, Slot]
    is_empty: bool
    has_compress: bool

    def for_optimizers(self, held: Held) -> "Resolved":
        """Return the plan as it runs with these optimizers.

        Raises:
            ConfigError: its clipper was made for another number of optimizers.
        """
        return replace(self, clip=self.clip and self.clip.for_optimizers(held))

    @property
    def largest_norm(self) -> float:
        """Return the largest norm that the guard lets pass: codecs add and multiply in float32."""
        return torch.finfo(torch.float64 if self.compress.reducer.leaves_nothing else torch.float32).max


@dataclass(frozen=True)
class Plan:
    """Names the accumulation, clipping and compression that run. The default installs nothing: it is plain PyTorch.

    Args:
        accumulate: how micro-batches make a step; None is one batch a step, its loss taken as it is.
        compress: what crosses the network; None sends float32.
        clip: what limits the delivered gradient.
        local_clip: bounds, before compression, the norm of what each rank adds to the sum over ranks, by
            local_clip / sqrt(ranks), above 0. A rank adds its share of the mean: with equal shares its own mean is
            bounded by local_clip * sqrt(ranks). None does not (Lin et al. 2018, Deep gradient compression, section
            3.2, arXiv:1712.01887).
        loss_scale: dynamic loss scaling for float16; None scales nothing.
        noise_scale: measures the gradient noise scale into the records; None measures nothing, and costs nothing.
        guard: what happens at inf or NaN, and at spikes; None is `Guard("raise")` unless the plan is empty.
    """

    accumulate: Accumulate | None = None
    compress: Compress | None = None
    clip: Clipper | None = None
    local_clip: float | None = None
    loss_scale: LossScale | None = None
    guard: Guard | None = None
    noise_scale: NoiseScale | None = None

    def __post_init__(self) -> None:
        for name in _PLAN_SETTINGS:
            check_kind(name, getattr(self, name), "Plan", _PLAN_SETTINGS, method)
            check_ids(getattr(self, name))
            _check_class(name, getattr(self, name))
        if self.compress is not None and self.accumulate is not None and self.accumulate.sync == "every":
            raise IncompatiblePlanError(
                'compress runs once a window, after its last backward, so sync="every" cannot be had with it; leave '
                "sync alone."
            )
        if self.guard is None and not self.is_empty:
            object.__setattr__(self, "guard", Guard())
        self._check_overlap()
        self._check_local_clip()
        self._check_noise_scale()
        self._check_policy()
        self._check_slots()

    def _check_overlap(self) -> None:
        if self.compress is None or self.compress.overlap != "backward":
            return
        if self.local_clip is not None:
            raise IncompatiblePlanError(
                "local_clip needs the norm of the whole local gradient, which is known only after backward; overlap="
                '"backward" sends the first gradients before. Take Compress(overlap="none"), or drop local_clip.'
            )
        if self.accumulate is not None and self.accumulate.on_oom == "split":
            raise IncompatiblePlanError(
                'on_oom="split" runs a window again, and overlap="backward" has sent parts of it by then; take '
                'Compress(overlap="none").'
            )

    def _check_local_clip(self) -> None:
        if self.local_clip is None:
            return
        check_number("local_clip", self.local_clip, above=0.0)
        if self.compress is None:
            raise IncompatiblePlanError("local_clip comes before compression; add compress, or take clip instead.")
        if self.accumulate is not None and len(self.accumulate.losses) > 1:
            raise IncompatiblePlanError("with several losses there is no one local mean for local_clip; drop it.")

    def _check_noise_scale(self) -> None:
        if self.noise_scale is None:
            return
        if not self.resolved().compress.reducer.leaves_nothing:
            raise IncompatiblePlanError(
                "noise_scale needs the norm of the whole window's gradient, and what compression delivers is another "
                "one; measure it in a run without compress."
            )
        if self.accumulate is not None and len(self.accumulate.losses) > 1:
            raise IncompatiblePlanError("with several losses there is no one batch size for noise_scale; drop it.")
        if self.accumulate is not None and self.accumulate.fetch == "batch":
            raise IncompatiblePlanError(
                'noise_scale compares micro-batches that were scaled by the same N, which fetch="batch" knows only at '
                'the end; take Accumulate(fetch="window").'
            )

    def _check_policy(self) -> None:
        policy = self.guard.on_nonfinite if self.guard is not None else "raise"
        if policy == "propagate" and self.compress is not None and self.compress.codec is not None:
            raise IncompatiblePlanError(
                'on_nonfinite="propagate" would let one NaN into residuals for good; use "raise", "skip" or "zero".'
            )
        if policy in ("zero", "propagate") and self.loss_scale is not None:
            raise IncompatiblePlanError(
                f'loss_scale learns from overflows, which on_nonfinite="{policy}" hides; use "raise" or "skip".'
            )

    def _check_slots(self) -> None:
        """Two methods that remember under one name would write over each other's tensors."""
        owners: dict[str, object] = {}
        for part in self._remembering():
            for slot in part.slots:
                other = owners.setdefault(slot.name, part)
                if other is not part:
                    raise IncompatiblePlanError(
                        f"{type(part).__name__} and {type(other).__name__} both remember something as {slot.name!r}; "
                        "rename the Slot of one of them."
                    )

    @cached_property
    def is_empty(self) -> bool:
        """Tell whether this is plain PyTorch."""
        return all(getattr(self, part.name) is None for part in fields(self))

    @property
    def slots(self) -> dict[str, Slot]:
        """Return what the plan's methods remember, by slot name."""
        return {slot.name: slot for part in self._remembering() for slot in part.slots}

    def resolved(self) -> Resolved:
        """Return the plan as it runs, with a default for each part that was left out."""
        return Resolved(
            accumulate=self.accumulate or Accumulate(),
            compress=(self.compress or Compress()).resolved(),
            clip=self.clip,
            local_clip=self.local_clip,
            noise_scale=self.noise_scale,
            guard=self.guard or Guard(),
            slots=self.slots,
            is_empty=self.is_empty,
            has_compress=self.compress is not None,
        )

    def _remembering(self) -> list[Any]:
        compress = self.compress or Compress()
        parts = (compress.feedback, compress.reducer, self.clip, self.loss_scale, self.noise_scale, self.guard)
        return [part for part in parts if part is not None]

    def fetches_one_by_one(self, *, is_alone: bool) -> bool:
        """Tell whether each micro-batch is fetched when its turn comes, as `Accumulate(fetch=...)` says.

        Args:
            is_alone: whether there is one process, whose wrapper need not know which micro-batch is the window's last.
        """
        accumulate = self.accumulate or Accumulate()
        if accumulate.fetch != "auto":
            return accumulate.fetch == "batch"
        return is_alone and accumulate.why_whole_windows is None and self.noise_scale is None

    def to_json(self, *, indent: int | None = None) -> str:
        """Write the plan as JSON text."""
        return json.dumps(self.to_config(), indent=indent)

    def to_config(self) -> dict[str, Any]:
        """Return the JSON values that `from_config` reads."""
        return {"version": PLAN_VERSION, **to_config(self)}

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: not JSON, another version, an unknown or missing key, or a value out of its bounds.
        """
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"a plan must be JSON: {error}.") from None
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config: Any) -> "Plan":
        """Read a plan from JSON values."""
        if not isinstance(config, dict):
            raise ConfigError(f"a plan must be a JSON object, not {type(config).__name__}.")
        version = config.get("version")
        if version != PLAN_VERSION:
            raise ConfigError(f"a plan of version {version!r} cannot be read; this is version {PLAN_VERSION}.")
        parts = {key: value for key, value in config.items() if key != "version"}
        for name, part_class in _WITHOUT_ID.items():
            if parts.get(name) is not None:
                parts[name] = _part(part_class, parts[name], name)
        for name in ("accumulate", "clip"):
            if name in parts:
                parts[name] = method_from_config(parts[name], method, name)
        plan: Plan = from_config(cls, parts, method, "plan")
        return plan


def _check_class(name: str, part: object) -> None:
    """Refuse a subclass of a part that JSON names by its place alone, which would be read as the class itself."""
    cls = _WITHOUT_ID.get(name)
    if cls is not None and part is not None and type(part) is not cls:
        raise ConfigError(
            f"{name} is a {type(part).__name__}, a subclass of {spelling(cls)}, which a plan read from JSON and a "
            f"checkpoint would have in its place; give Plan a {spelling(cls)} itself."
        )


def _part(cls: type, config: Any, where: str) -> Any:
    return from_config(cls, config, method, where)


def plan_for(value: object) -> str:
    """Return the call that makes a plan of a part that was given instead of one."""
    return "tg." + instead("accumulate", value, "Plan", _PLAN_SETTINGS, method)


_WITHOUT_ID: dict[str, type] = {
    "compress": Compress,
    "loss_scale": LossScale,
    "guard": Guard,
    "noise_scale": NoiseScale,
}
_COMPRESS_SETTINGS = {
    "codec": Setting(Codec, None, "codec=tg.codecs.TopK(density=0.01)"),
    "reducer": Setting(Reducer, None, "codec=tg.codecs.TopK(density=0.01), reducer=tg.reducers.Gather()"),
    "feedback": Setting(Feedback, None, "codec=tg.codecs.TopK(density=0.01), feedback=tg.ErrorFeedback()"),
}
_PLAN_SETTINGS = {
    "accumulate": Setting(Accumulate, Accumulate, "accumulate=tg.Accumulate(micro_batches=4)"),
    "compress": Setting(
        Compress,
        Compress,
        "compress=tg.Compress(codec=tg.codecs.TopK(density=0.01), feedback=tg.ErrorFeedback())",
    ),
    "clip": Setting(Clipper, GlobalNorm, "clip=tg.clip.GlobalNorm(max_norm=1.0)"),
    "loss_scale": Setting(LossScale, LossScale, "loss_scale=tg.LossScale()"),
    "guard": Setting(Guard, Guard, "guard=tg.Guard()"),
    "noise_scale": Setting(NoiseScale, NoiseScale, "noise_scale=tg.scaling.NoiseScale()"),
}
