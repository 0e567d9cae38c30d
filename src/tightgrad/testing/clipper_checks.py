"""What every clipper must do with any gradients."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tightgrad.clip.norm import total_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import Clipped, Grads
from tightgrad.testing.checks import Checks, for_all

CLIPPER_CHECKS = Checks()
SHAPES = {"conv": (4, 3, 3, 3), "bias": (7,), "matrix": (5, 6), "scalar": (), "empty": (0, 3)}

# The norm adds rows of a few hundred numbers in float32 (a dozen roundings of 2^-24, mostly cancelling) and the rows
# in float64; quotient and product round once more.
ROUNDING = 1e-6


@dataclass(frozen=True)
class ClipCase:
    """Says what a clipper promises, beside what all of them do.

    All leave gradients below their bound as they are, to the bit, and change nothing when they are called again. A rule
    that shrinks every gradient a little, such as `max_norm / (max_norm + total_norm)`, therefore fails the suite; write
    it as a function, and give it to `attach` as `before_clip`.

    Args:
        clipper: canonical settings.
        limit: what is at most `bound` after clipping: the norm of the "model", of each "tensor", each "element", or
            None if the bound is learned.
        bound: the limit.
        norm_type: of the limited norm.
        keeps_direction: all gradients are scaled by one factor.
    """

    clipper: Clipper
    limit: str | None
    bound: float = 1.0
    norm_type: float = 2.0
    keeps_direction: bool = True


def is_bounded(case: ClipCase) -> bool:
    """Return whether there is a bound to check."""
    return case.limit is not None


def gradients(scale: float, seed: int = 0) -> Grads:
    """Draw a gradient of each shape."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


def parameters(grads: Grads) -> dict[str, nn.Parameter]:
    """Draw a parameter for each gradient: the same for the same name, in any order."""
    seeded = {name: torch.Generator().manual_seed(len(name)) for name in grads}
    return {name: nn.Parameter(torch.randn(grad.shape, generator=seeded[name])) for name, grad in sorted(grads.items())}


def clip(case: ClipCase, grads: Grads) -> Clipped:
    """Clip in place, with nothing remembered."""
    with torch.no_grad():
        return case.clipper.clip_(grads, parameters(grads), total_norm, {})


def copy(grads: Grads) -> Grads:
    """Return gradients that may be clipped without changing these."""
    return {name: grad.clone() for name, grad in grads.items()}


def limited(case: ClipCase, grads: Grads) -> float:
    """Return the largest of what the clipper bounds, in float64."""
    if case.limit == "element":
        return max((float(grad.abs().max()) for grad in grads.values() if grad.numel()), default=0.0)
    flats = [grad.double().reshape(-1) for grad in grads.values() if grad.numel()]
    groups = [torch.cat(flats)] if case.limit == "model" and flats else flats
    return max((float(torch.linalg.vector_norm(flat, case.norm_type)) for flat in groups), default=0.0)


def joined(grads: Grads) -> Tensor:
    """Return all elements in float64."""
    return torch.cat([grad.double().reshape(-1) for grad in grads.values()])


def assert_bounded(case: ClipCase, grads: Grads) -> None:
    """Raise an AssertionError if what the clipper limits is above the bound."""
    found = limited(case, grads)
    assert found <= case.bound * (1 + ROUNDING), (
        f"after clipping, the largest {case.limit} norm or value is {found:.9g}, above the bound {case.bound:g}"
    )


def assert_near(name: str, reported: Tensor, exact: float) -> None:
    """Raise an AssertionError unless a reported number is right to rounding."""
    assert math.isclose(float(reported), exact, rel_tol=ROUNDING), (
        f"{name} is {float(reported):.9g}, expected {exact:.9g}"
    )


def assert_nothing_clipped(clipped: Clipped, what: str) -> None:
    """Raise an AssertionError unless the norm is 0 and the factor 1."""
    found = (float(clipped.total_norm), float(clipped.clip_coef))
    assert found == (0.0, 1.0), f"total_norm and clip_coef of {what} are {found}, expected (0.0, 1.0)"


@CLIPPER_CHECKS.add(variants={str(scale): scale for scale in (1e-20, 1e-3, 1.0, 1e3, 1e30)}, applies=is_bounded)
def check_the_applied_norm_is_at_most_the_bound(case: ClipCase, scale: float) -> None:
    """Check that gradients of any size are limited."""
    grads = gradients(scale)
    clip(case, grads)
    assert_bounded(case, grads)


@CLIPPER_CHECKS.add(applies=is_bounded)
def check_the_bound_holds_for_any_values(case: ClipCase) -> None:
    """Check the bound also where a few values are far larger than the others."""

    def for_values(values: list[float]) -> None:
        grads = {"weight": torch.tensor(values), "bias": torch.tensor(values[::2])}
        clip(case, grads)
        assert_bounded(case, grads)

    for_all(for_values, values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=20))


@CLIPPER_CHECKS.add(applies=is_bounded)
def check_identity_below_the_bound(case: ClipCase) -> None:
    """Check that what is below the bound keeps all its bits, so that clipping twice is clipping once.

    torch's own formula shrinks what lies within 1e-6 of the bound, which these gradients do not.
    """
    grads = gradients(1e-4)
    before = copy(grads)
    assert limited(case, before) < case.bound, "the bound is too small for this check: it needs gradients below it"
    clipped = clip(case, grads)
    assert float(clipped.clip_coef) == 1.0, (
        f"clip_coef is {float(clipped.clip_coef):.9g} for gradients below the bound; a clipper leaves them as they are"
    )
    for name, grad in grads.items():
        assert torch.equal(grad, before[name]), f"{name} was below the bound and has changed"


SCALES = {str(scale): scale for scale in (1e-4, 1.0, 1e4)}


@CLIPPER_CHECKS.add(variants=SCALES)
def check_idempotent(case: ClipCase, scale: float) -> None:
    """Check that clipping twice is clipping once, to the rounding of the second norm.

    The 1e-6 of torch's formula makes it shrink again.
    """
    grads = gradients(scale)
    clip(case, grads)
    once = copy(grads)
    clip(case, grads)
    tolerance = 3e-6 if getattr(case.clipper, "compat", "") == "torch" else 2 * ROUNDING
    for name, grad in grads.items():
        torch.testing.assert_close(grad, once[name], rtol=tolerance, atol=0.0)


@CLIPPER_CHECKS.add(variants=SCALES)
def check_what_is_reported_is_what_was_done(case: ClipCase, scale: float) -> None:
    """Check that the reported norm is that before clipping, and the factor the norm after over the norm before."""
    grads = gradients(scale)
    before = joined(grads)
    clipped = clip(case, grads)
    after = joined(grads)
    norm_type = getattr(case.clipper, "norm_type", 2.0)
    exact = torch.linalg.vector_norm(before, norm_type)
    for name, number in (("total_norm", clipped.total_norm), ("clip_coef", clipped.clip_coef)):
        assert (number.dtype, number.shape) == (torch.float32, ()), (
            f"{name} is {number.dtype} of shape {tuple(number.shape)}, expected float32 without dimensions"
        )
    assert_near("total_norm", clipped.total_norm, float(exact))
    assert_near("clip_coef", clipped.clip_coef, float(torch.linalg.vector_norm(after, norm_type) / exact))
    assert not clipped.total_norm.requires_grad, "total_norm carries a graph; clip under torch.no_grad()"


@CLIPPER_CHECKS.add(applies=lambda case: case.keeps_direction)
def check_direction_is_preserved(case: ClipCase) -> None:
    """Check that all elements are multiplied by the reported factor."""
    grads = gradients(100.0)
    before = joined(grads)
    clipped = clip(case, grads)
    # One product in float32 for each element.
    torch.testing.assert_close(joined(grads), before * float(clipped.clip_coef), rtol=2.0**-24, atol=0.0)
    assert float(clipped.clip_coef) < 1.0, (
        f"{case.clipper!r} does not clip gradients with entries around 100, as this check needs; give a smaller bound"
    )


@CLIPPER_CHECKS.add(applies=lambda case: not case.keeps_direction)
def check_signs_are_preserved_and_nothing_grows(case: ClipCase) -> None:
    """Check that each element shrinks or stays."""
    grads = gradients(100.0)
    before = joined(grads)
    clip(case, grads)
    assert bool((joined(grads).abs() <= before.abs()).all()), "an element has grown"
    assert bool((joined(grads).sign() * before.sign() >= 0).all()), "an element has changed its sign"


@CLIPPER_CHECKS.add()
def check_the_order_of_parameters_is_irrelevant(case: ClipCase) -> None:
    """Check that gradients in another order are clipped alike."""
    forward = gradients(10.0)
    backward = dict(reversed(list(copy(forward).items())))
    first, second = clip(case, forward), clip(case, backward)
    assert_near("total_norm of another order", first.total_norm, float(second.total_norm))
    for name in forward:
        torch.testing.assert_close(forward[name], backward[name], rtol=2 * ROUNDING, atol=0.0)


@CLIPPER_CHECKS.add()
def check_nothing_to_clip(case: ClipCase) -> None:
    """Check that without gradients the norm is 0 and the factor 1."""
    for grads in ({}, {"empty": torch.empty(0, 3)}):
        assert_nothing_clipped(clip(case, grads), f"gradients {grads}")


@CLIPPER_CHECKS.add()
def check_zero_gradients_stay_zero(case: ClipCase) -> None:
    """Check that nothing is divided by a norm of 0."""
    grads = gradients(0.0)
    assert_nothing_clipped(clip(case, grads), "gradients of zeros")
    for name, grad in grads.items():
        assert not grad.any(), f"{name} was zero and is now {grad}; a factor of bound / 0 makes zeros NaN"


@CLIPPER_CHECKS.add()
def check_nan_is_seen_and_never_becomes_a_number(case: ClipCase) -> None:
    """Check that the guard can see a NaN in the norm."""
    grads = gradients(1.0)
    grads["bias"][3] = math.nan
    clipped = clip(case, grads)
    for name, number in (
        ("total_norm", clipped.total_norm),
        ("clip_coef", clipped.clip_coef),
        ("the NaN", grads["bias"][3]),
    ):
        assert math.isnan(float(number)), (
            f"{name} is {float(number):.9g} where a gradient has a NaN, expected NaN, which the guard looks for; "
            "max() and min() of Python lose one, torch.amax() and Tensor.clamp() keep it"
        )


@CLIPPER_CHECKS.add()
def check_inf_is_seen(case: ClipCase) -> None:
    """Check that the guard can see an inf in the norm."""
    grads = gradients(1.0)
    grads["matrix"][0, 0] = -math.inf
    found = float(clip(case, grads).total_norm)
    assert found == math.inf, f"total_norm is {found:.9g} where a gradient has -inf, expected inf"


@CLIPPER_CHECKS.add()
def check_strided_gradients_are_clipped_in_place(case: ClipCase) -> None:
    """Check that strided gradients are clipped as contiguous ones are, in their own memory."""
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) * 100
    plain = {"weight": base.t().contiguous(), "rows": base[::2, 1:].contiguous()}
    strided = {"weight": base.clone().t(), "rows": base.clone()[::2, 1:]}
    memory = [tensor.data_ptr() for tensor in strided.values()]
    clip(case, plain)
    clip(case, strided)
    assert [tensor.data_ptr() for tensor in strided.values()] == memory, (
        "clip_ has put other tensors into the dict; change the gradients themselves, with mul_ or copy_"
    )
    for name in plain:
        torch.testing.assert_close(strided[name], plain[name], rtol=2 * ROUNDING, atol=0.0)
