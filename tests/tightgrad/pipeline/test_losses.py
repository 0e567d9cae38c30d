"""Where gradients start: the bits of the weighted sum's backward, without the sum."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from tightgrad.pipeline.losses import run_backward

FACTORS = {"mean": 0.3371, "sum": 1.77}
Run = Callable[[Mapping[str, Tensor]], None]


def gradients(dtype: torch.dtype, run: Run) -> list[Tensor | None]:
    """Of two losses over the same layer, one with a dimension."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(7, 5, dtype=dtype)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    outputs = layer(torch.randn(9, 7, generator=generator).to(dtype))
    run({"mean": outputs.square().mean(), "sum": outputs.abs().sum().reshape(1)})
    return [parameter.grad for parameter in layer.parameters()]


def summed(losses: Mapping[str, Tensor]) -> None:
    (losses["mean"] * FACTORS["mean"] + losses["sum"] * FACTORS["sum"]).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_bits_are_those_of_the_weighted_sum(dtype: torch.dtype) -> None:
    found = gradients(dtype, lambda losses: run_backward(losses, FACTORS))
    for own, expected in zip(found, gradients(dtype, summed), strict=True):
        assert own is not None
        assert expected is not None
        assert torch.equal(own, expected)


def test_a_loss_without_a_factor_has_no_part() -> None:
    found = gradients(torch.float32, lambda losses: run_backward(losses, {"mean": 2.0}))
    for own, expected in zip(found, gradients(torch.float32, lambda each: (2 * each["mean"]).backward()), strict=True):
        assert own is not None
        assert expected is not None
        assert torch.equal(own, expected)


def test_a_loss_that_is_constant_is_passed_over_unless_all_are() -> None:
    weight = torch.ones(3, requires_grad=True)
    constant = torch.tensor(5.0)
    run_backward({"mean": weight.sum(), "sum": constant}, FACTORS)
    assert weight.grad is not None
    assert weight.grad.tolist() == [pytest.approx(FACTORS["mean"])] * 3
    with pytest.raises(RuntimeError, match="does not require grad"):
        run_backward({"mean": constant}, {"mean": 1.0})
