"""The values that are passed along the gradient path."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from tightgrad.core.errors import ConfigError

Grads = dict[str, Tensor]
"""Gradients by parameter name, in the same order on every rank."""

State = Mapping[str, Mapping[str, Tensor]]
"""What methods remember between steps: slot -> parameter name (or MODEL) -> tensor. Never changed in place."""


MODEL = "*"
"""The name under which a method keeps what belongs to no single parameter."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Describes one kind of tensor that a method remembers between steps.

    Args:
        name: key in the state, unique within a plan.
        across_ranks: "sum" if each rank has its own and their sum is what matters (residuals), "equal" if all ranks
            hold the same.
        like_parameter: whether each tensor has its parameter's shape.
        of_model: whether there is one tensor, under MODEL, instead of one for each parameter.
        shape: shape of each tensor, where it is the same for all; None does not check it.
        dtype: dtype of each tensor; None allows any floating-point or complex one; ignored with a storage.
        storage: how values are held in fewer bytes; None holds them as they are.
        role: what the pipeline does with the tensors besides keeping them. "residual" is what a rank has not sent yet:
            `flush()` delivers and clears it, and records have its norm. "factors" are low-rank factors, of independent
            columns: records say how many of their directions a step kept. None does nothing.

    Raises:
        ConfigError: the role is "residual", and tensors are not a rank's own, of their parameter's shape.
    """

    name: str
    across_ranks: Literal["sum", "equal"]
    like_parameter: bool = False
    of_model: bool = False
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    storage: "Storage | None" = None
    role: Literal["residual", "factors"] | None = None

    def __post_init__(self) -> None:
        if self.role == "residual" and not (self.across_ranks == "sum" and self.like_parameter):
            raise ConfigError(
                f'slot {self.name!r} has role="residual", and residuals are summed over ranks into gradients; give it '
                'across_ranks="sum" and like_parameter=True.'
            )

    def hold(self, values: Tensor) -> Tensor:
        """Return what is kept in the state for `values`."""
        return values if self.storage is None else self.storage.pack(values)

    def values(self, held: Tensor) -> Tensor:
        """Return the values that `hold` stored; from a storage they come back in one dimension."""
        return held if self.storage is None else self.storage.unpack(held)

    def added(self, first: Tensor, second: Tensor) -> Tensor:
        """Return what is kept for the sum of two ranks' values."""
        return first + second if self.storage is None else self.hold(self.values(first) + self.values(second))

    def fits(self, held: Tensor, shape: tuple[int, ...]) -> bool:
        """Tell whether `held` can belong to a parameter of that shape (for `of_model`, any)."""
        if self.storage is not None:
            return self.storage.numel(held) == torch.Size(shape).numel()
        if self.dtype is not held.dtype if self.dtype else not (held.is_floating_point() or held.is_complex()):
            return False
        wanted = shape if self.like_parameter else self.shape
        return wanted is None or held.shape == wanted


def slots_with(role: str, slots: Mapping[str, Slot]) -> list[Slot]:
    """Return those slots that have this role, in order."""
    return [slot for slot in slots.values() if slot.role == role]


class Storage(Protocol):
    """Holds float32 values in fewer bytes, as one tensor that a checkpoint can hold."""

    def pack(self, values: Tensor) -> Tensor:
        """Pack float32 values of any shape into one tensor."""

    def unpack(self, held: Tensor) -> Tensor:
        """Unpack the values to float32, in one dimension."""

    def numel(self, held: Tensor) -> int:
        """Return how many values are held; -1 if `held` was not packed by this storage."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Describes dtype and length of one tensor of a payload, known on every rank without being sent.

    `numel` is None where the length depends on the data: only for the last tensor of a payload, which is uint8 then.
    """

    dtype: torch.dtype
    numel: int | None

    @property
    def nbytes(self) -> int | None:
        """Return the bytes on the wire; None where they depend on the data."""
        return None if self.numel is None else self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class GradSpec:
    """Holds what every rank knows about a tensor that one of them encodes.

    Args:
        name: the parameter's name.
        shape: the shape of the whole gradient; a codec of scope "matrix" needs it.
        numel: number of elements handed to the codec (a chunk of the gradient may be less than all of it).
        dtype: dtype of the decoded result, float32 on the gradient path.
        device: where the decoded result lives.
        seed: seed of the random numbers that must be the same on every rank; it differs by step and name.
        step: number of steps applied so far, for settings that change during training.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    step: int = 0

    @classmethod
    def of(cls, name: str, tensor: Tensor, *, seed: int = 0, step: int = 0) -> "GradSpec":
        """Describe a whole gradient."""
        return cls(name, tuple(tensor.shape), tensor.numel(), tensor.dtype, tensor.device, seed, step)

    def part(self, numel: int) -> "GradSpec":
        """Describe a chunk of `numel` elements of the same gradient."""
        return replace(self, numel=numel)

    @property
    def dense_nbytes(self) -> int:
        """Return the bytes of the elements themselves, uncompressed."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Payload:
    """Holds all that crosses the wire for one tensor, and the spec that is not sent."""

    tensors: tuple[Tensor, ...]
    spec: GradSpec

    @property
    def nbytes(self) -> int:
        """Return the bytes on the wire."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


class Sent(Mapping[str, Tensor]):
    """Holds what this rank transmitted of each tensor, decoded only when it is asked for."""

    @abstractmethod
    def subtract_from_(self, values: Mapping[str, Tensor]) -> None:
        """Subtract what was transmitted from contiguous `values`, one for each name, in place."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """Holds what a reducer gives back.

    Args:
        total: the sum over ranks of what was delivered, never divided; bitwise equal on all ranks.
        transmitted: what of `total` came from this rank; over ranks they add up to `total`.
        state: what the method remembers, to be stored if the step is applied.
    """

    total: Grads
    transmitted: Mapping[str, Tensor]
    state: State = field(default_factory=dict)

    def untransmitted_(self, values: Grads) -> Grads:
        """Return what of contiguous `values`, which this may overwrite, was not transmitted."""
        if isinstance(self.transmitted, Sent):
            self.transmitted.subtract_from_(values)
            return values
        return {name: value - self.transmitted[name] for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Clipped:
    """Holds what a clipper found and did.

    Args:
        total_norm: scalar, the norm before clipping.
        clip_coef: scalar, norm after clipping over norm before; 1 when nothing was clipped.
        state: what the method remembers, to be stored if the step is applied.
        groups: the same of each group that was clipped by itself, by the group's name; empty if there are none.
    """

    total_norm: Tensor
    clip_coef: Tensor
    state: State = field(default_factory=dict)
    groups: "Mapping[str, Clipped]" = field(default_factory=dict)
