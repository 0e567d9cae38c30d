"""A package as CONTRIBUTING.md tells one to write it: a codec, a feedback, a clipper and a reducer of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.protocols import Clipper, Codec, Feedback, GradNorm, Reduce, ReduceContext, Reducer
from tightgrad.core.types import Clipped, Grads, GradSpec, Payload, Reduced, Slot, State, TensorLayout
from tightgrad.core.wire import checked_tensors


@dataclass(frozen=True)
class Half(Codec):
    """Sends every second entry."""

    card: ClassVar[MethodCard] = MethodCard(
        id="half",
        kind="codec",
        summary="every second entry",
        scope="element",
        reference="CONTRIBUTING.md",
        use_when="an example is wanted",
        avoid_when="gradients are wanted",
        reducer="two_shot",
    )

    @property
    def granularity(self) -> int:
        return 2

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        return (TensorLayout(torch.float32, -(-spec.numel // 2)),)

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        return Payload((flat[::2].clone(),), spec)

    def decode(self, payload: Payload) -> Tensor:
        (values,) = checked_tensors(self, payload)
        flat = torch.zeros(payload.spec.numel, dtype=payload.spec.dtype, device=payload.spec.device)
        flat[::2] = values
        return flat


LEFT = Slot("half_left", across_ranks="sum", like_parameter=True, dtype=torch.float32, role="residual")


@dataclass(frozen=True)
class Later(Feedback):
    """Adds what was not sent to the next gradient."""

    card: ClassVar[MethodCard] = MethodCard(
        id="later",
        kind="feedback",
        summary="what was not sent is sent later",
        scope="tensor",
        reference="CONTRIBUTING.md",
        use_when="an example is wanted",
        avoid_when="error_feedback will do",
    )
    slots: ClassVar[tuple[Slot, ...]] = (LEFT,)

    def reduce_(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        left = state.get(LEFT.name, {})
        values = {name: grad + left[name] if name in left else grad.clone() for name, grad in grads.items()}
        reduced = inner(values)
        new = {name: value - reduced.transmitted[name] for name, value in values.items()}
        return Reduced(reduced.total, reduced.transmitted, {**reduced.state, LEFT.name: {**left, **new}})


@dataclass(frozen=True)
class AtMost(Clipper):
    """Scales all gradients so that their norm is at most `max_norm`."""

    max_norm: float

    card: ClassVar[MethodCard] = MethodCard(
        id="at_most",
        kind="clip",
        summary="one factor for all gradients",
        scope="model",
        reference="CONTRIBUTING.md",
        use_when="an example is wanted",
        avoid_when="global_norm will do",
    )

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, above=0.0)

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        total_norm = norm(list(grads.values()))
        factor = (self.max_norm / total_norm).clamp(max=1.0)
        for grad in grads.values():
            grad.mul_(factor)
        return Clipped(total_norm, factor)


@dataclass(frozen=True)
class Everyone(Reducer):
    """Every rank sends its gradients to every rank, uncompressed."""

    card: ClassVar[MethodCard] = MethodCard(
        id="everyone",
        kind="reducer",
        summary="all-gather of float32 gradients",
        scope="tensor",
        reference="CONTRIBUTING.md",
        use_when="an example is wanted",
        avoid_when="dense will do",
    )

    def refuses(self, codec: Codec | None) -> str | None:
        return "everyone sends float32; drop the codec, or use gather" if codec is not None else None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        total: Grads = {}
        for name, grad in grads.items():
            if not grad.numel():
                total[name] = grad.clone()
                continue
            with context.clock("collective"):
                rows = context.collective.all_gather(grad.contiguous())
            total[name] = torch.stack(tuple(rows)).sum(dim=0)
        return Reduced(total, {name: grad.clone() for name, grad in grads.items()})


def sent_nbytes(shapes: Mapping[str, Sequence[int]], codec: Codec | None, world_size: int, rank: int) -> int:
    """What `Everyone` sends: 4 bytes for each element, to each other rank."""
    return (world_size - 1) * 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
