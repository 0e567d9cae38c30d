"""Low-precision gradients add up in float32."""

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.capture import Capture
from tightgrad.accumulate.buffer import GradientBuffer


@pytest.mark.parametrize(("dtype", "unaided"), [(torch.bfloat16, 0.5), (torch.float16, 1.01)])
def test_1024_equal_gradients(dtype, unaided):
    """bfloat16 alone reaches 37 % of the sum: the module's own claim."""
    parameter = nn.Parameter(torch.zeros(3, dtype=dtype))
    buffer = GradientBuffer({"weight": parameter})
    grad = torch.full((3,), 0.0117, dtype=dtype)
    alone = torch.zeros(3, dtype=dtype)
    for _ in range(1024):
        alone += grad
        parameter.grad = grad.clone()
        buffer.absorb()
        assert parameter.grad is None
    total = buffer.grads()["weight"]
    assert total.dtype == torch.float32
    # 1024 float32 additions of equal numbers: at most 1024 * 2^-24 relative.
    torch.testing.assert_close(total, grad.float() * 1024, rtol=1024 * 2.0**-24, atol=0.0)
    assert float(alone[0]) < unaided * float(total[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_stays_where_autograd_adds_it(dtype):
    parameter = nn.Parameter(torch.zeros(2, dtype=dtype))
    buffer = GradientBuffer({"weight": parameter})
    parameter.grad = torch.ones(2, dtype=dtype)
    buffer.absorb()
    assert buffer.grads()["weight"] is parameter.grad


def test_deliver_casts_to_the_parameters_dtype_and_clear_forgets():
    parameters = {"low": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)), "full": nn.Parameter(torch.zeros(2))}
    buffer = GradientBuffer(parameters)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    buffer.absorb()
    buffer.deliver({name: grad * 3 for name, grad in buffer.grads().items()})
    assert [p.grad.dtype for p in parameters.values()] == [torch.bfloat16, torch.float32]
    assert all(p.grad.tolist() == [3.0, 3.0] for p in parameters.values())
    buffer.clear()
    assert buffer.grads() == {}
    assert all(p.grad is None for p in parameters.values())


def test_a_sparse_gradient_is_refused_with_the_way_out():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(tg.UnsupportedError, match=r"'weight' is sparse.*sparse=False"):
        GradientBuffer(dict(embedding.named_parameters())).grads()


def test_only_parameters_whose_gradients_may_be_low_are_looked_at():
    parameters = {"full": nn.Parameter(torch.zeros(2)), "low": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}
    assert GradientBuffer(parameters).absorbs
    assert not GradientBuffer({"full": parameters["full"]}).absorbs
    assert not GradientBuffer({}).absorbs


def test_a_model_that_is_cast_between_two_windows_is_absorbed_from_then_on():
    model = nn.Linear(2, 1)
    buffer = GradientBuffer(dict(model.named_parameters()))
    model.bfloat16()
    buffer.clear()
    model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    buffer.absorb()
    assert {grad.dtype for grad in buffer.grads().values()} == {torch.float32}


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch 2.10 gave parameters a grad_dtype")
@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, None])
def test_a_float32_parameter_with_low_gradients(grad_dtype):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad_dtype = grad_dtype
    buffer = GradientBuffer({"weight": parameter})
    for _ in range(300):
        parameter.grad = torch.ones(2, dtype=torch.bfloat16)
        buffer.absorb()
    assert buffer.grads()["weight"].tolist() == [300.0, 300.0]  # in bfloat16 it would stop at 256


def test_a_bfloat16_model_gets_the_float32_sum():
    """64 micro-batches of bfloat16 gradients: one rounding of the sum, not 64."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    optimizer = Capture(model.named_parameters())
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(64)))
    for window in pipe.windows([torch.full((1, 1), 1.0 + index / 64, dtype=torch.bfloat16) for index in range(64)]):
        for batch in window:
            pipe.backward(model(batch).sum())
        pipe.step()
    exact = sum(1.0 + index / 64 for index in range(64)) / 64
    # Inputs and 1/64 are exact in bfloat16; only the delivered sum is rounded to its 8 bits.
    assert float(optimizer.steps[0]["weight"]) == pytest.approx(exact, rel=2.0**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_says_how_long_accumulating_took(dtype):
    model = nn.Linear(2, 1, dtype=dtype)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(accumulate=tg.Accumulate(2)))
    for window in pipe.windows([torch.ones(1, 2, dtype=dtype)] * 4):
        for batch in window:
            pipe.backward(model(batch).sum())
        record = pipe.step()
        assert record.stage_seconds.keys() == {"backward", "accumulate", "guard", "clip", "optimizer"}
