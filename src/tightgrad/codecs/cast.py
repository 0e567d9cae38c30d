"""Half precision on the wire: C(x) = round(x) to float16 or bfloat16; sums are float32. Or C(x) = x.

    Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740.

float16 keeps 11 bits and overflows above 65504 (the guard then refuses the step); bfloat16 keeps 8 bits and the
range of float32. float32 itself is for the small tensors of `SizeAdaptive` and the values of `RandomK`; only it is
linear, since a sum of rounded numbers would be rounded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.together import Together
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import check_message, checked_tensors

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Cast(Together):
    """Sends each element as a number of half precision.

    Args:
        dtype: "float16", "bfloat16", or "float32", which changes nothing.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.Cast("bfloat16")
        >>> x = torch.tensor([1.0, 0.001, -300.7])
        >>> payload = codec.encode(x, GradSpec.of("weight", x), torch.Generator())
        >>> payload.nbytes, codec.decode(payload).tolist()
        (6, [1.0, 0.00099945068359375, -300.0])
    """

    dtype: str = "bfloat16"

    card: ClassVar[MethodCard] = MethodCard(
        id="cast",
        kind="codec",
        summary="half-precision values on the wire, float32 sums",
        scope="element",
        contraction="1 - 2^-16 for bfloat16",
        reducer="two_shot",
        reference="Micikevicius et al. 2018, arXiv:1710.03740",
        use_when="the link is up to twice too slow and training must not change",
        avoid_when="the link is more than twice too slow, or (float16) gradients exceed 65504",
    )

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, _DTYPES)

    def contraction(self, numel: int) -> float:
        """Return the delta that rounding by half a unit in the last place gives; 0 for float16, whose small numbers
        underflow.
        """
        return {"float16": 0.0, "bfloat16": 1.0 - 2.0**-16, "float32": 1.0}[self.dtype]

    @property
    def linear(self) -> bool:
        """Tell whether payloads may be summed: only float32, which does not round."""
        return self.dtype == "float32"

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout: one number an element."""
        return (TensorLayout(_DTYPES[self.dtype], spec.numel),)

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Round each element to the nearest number, ties to even."""
        return Payload((flat.to(_DTYPES[self.dtype], copy=True),), spec)

    def encode_together(self, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> Tensor:
        """Convert the elements of all tensors at once."""
        return torch.cat([flat.to(_DTYPES[self.dtype]) for flat in flats]).view(torch.uint8)

    def decode_together(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
        """Widen the elements of all tensors at once."""
        numels = [spec.numel for spec in specs]
        check_message(self, message, sum(numels) * _DTYPES[self.dtype].itemsize)
        values = message.clone().view(_DTYPES[self.dtype]).to(torch.float32)
        return [piece.to(spec.dtype) for piece, spec in zip(values.split(numels), specs, strict=True)]

    def decode(self, payload: Payload) -> Tensor:
        """Widen each number to the dtype of the spec."""
        (values,) = checked_tensors(self, payload)
        return values.to(payload.spec.dtype, copy=True)

    def decode_to_(self, out: Tensor, payload: Payload) -> None:
        """Widen each number and write it to `out`."""
        out.copy_(checked_tensors(self, payload)[0])

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Widen and add the numbers to `total` in one pass."""
        total.add_(checked_tensors(self, payload)[0])
