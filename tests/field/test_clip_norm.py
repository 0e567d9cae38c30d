"""Field cases C1-C4 and C7: `torch.nn.utils.clip_grad_norm_` on one process, next to its drop-in."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import tightgrad as tg


def parameters(grads: list[Tensor]) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(made, grads, strict=True):
        parameter.grad = grad.clone()
    return made


def norm_of(made: list[nn.Parameter]) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in made if p.grad is not None))


def test_c1_the_norm_of_bfloat16_gradients(field_row) -> None:
    generator = torch.Generator().manual_seed(0)
    grads = [(torch.randn(1000, generator=generator) * 0.3).bfloat16() for _ in range(200)]
    ours, theirs = parameters(grads), parameters(grads)
    true = norm_of(ours)
    norm = tg.clip_grad_norm_(ours, 1.0)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(true, rel=1e-6)
    # Entries are rounded to 8 bits after the product; 200000 such errors average out.
    assert norm_of(ours) == pytest.approx(1.0, abs=5e-4)
    returned = clip_grad_norm_(theirs, 1.0)
    wrong = returned.dtype == torch.bfloat16 and norm_of(theirs) > 1.003
    field_row(
        "C1 bfloat16 norm", "torch", f"post-clip {norm_of(theirs):.4f}", f"{norm_of(ours):.4f}", peer_is_wrong=wrong
    )


def test_c2_finite_float16_gradients_are_zeroed(field_row) -> None:
    grads = [torch.full((1000,), 3000.0, dtype=torch.float16) for _ in range(4)]
    ours, theirs = parameters(grads), parameters(grads)
    assert float(tg.clip_grad_norm_(ours, 1.0)) == pytest.approx(3000 * math.sqrt(4000), rel=1e-6)
    assert norm_of(ours) == pytest.approx(1.0, rel=2e-3)
    norm = clip_grad_norm_(theirs, 1.0)
    wrong = float(norm) == math.inf and norm_of(theirs) == 0.0
    field_row(
        "C2 finite float16", "torch", f"post-clip {norm_of(theirs):.4f}", f"{norm_of(ours):.4f}", peer_is_wrong=wrong
    )


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 3000.0), (torch.float32, 1e20)])
def test_c3_measuring_makes_nan(field_row, dtype: torch.dtype, value: float) -> None:
    grads = [torch.full((4000,), value, dtype=dtype)]
    ours, theirs = parameters(grads), parameters(grads)
    assert float(tg.clip_grad_norm_(ours, math.inf)) == pytest.approx(value * math.sqrt(4000), rel=1e-6)
    assert torch.equal(ours[0].grad, grads[0])
    clip_grad_norm_(theirs, math.inf)
    wrong = bool(theirs[0].grad.isnan().all())
    field_row(
        f"C3 measuring, {dtype}", "torch", f"gradient {float(theirs[0].grad[0])}", "unchanged", peer_is_wrong=wrong
    )


def test_c4_a_parameter_listed_twice(field_row) -> None:
    grads = [torch.full((4,), 10.0)]
    ours, theirs = parameters(grads), parameters(grads)
    assert float(tg.clip_grad_norm_([*ours, *ours], 1.0)) == 20.0
    assert norm_of(ours) == pytest.approx(1.0, rel=1e-6)
    norm = clip_grad_norm_([*theirs, *theirs], 1.0)
    wrong = float(norm) == pytest.approx(20 * math.sqrt(2)) and norm_of(theirs) < 0.03
    field_row(
        "C4 listed twice", "torch", f"post-clip {norm_of(theirs):.4f}", f"{norm_of(ours):.4f}", peer_is_wrong=wrong
    )


def test_c7_zero_norm_counts_entries(field_row) -> None:
    grads = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-4.0, 0.0])]
    assert float(tg.clip_grad_norm_(parameters(grads), 1e9, norm_type=0)) == 4.0
    theirs = float(clip_grad_norm_(parameters(grads), 1e9, norm_type=0))
    field_row("C7 zero norm", "torch", f"{theirs:.1f}", "4.0", peer_is_wrong=theirs == 2.0)


def test_c7_sparse_gradients(field_row) -> None:
    def model() -> nn.Embedding:
        embedding = nn.Embedding(10, 4, sparse=True)
        embedding(torch.tensor([1, 2, 2])).sum().backward()
        return embedding

    ours = model()
    assert float(tg.clip_grad_norm_(ours.parameters(), 1.0)) == pytest.approx(math.sqrt(4 * 1 + 4 * 4))
    assert float(ours.weight.grad.to_dense().norm()) == pytest.approx(1.0)
    try:
        theirs = str(float(clip_grad_norm_(model().parameters(), 1.0)))
    except (NotImplementedError, RuntimeError) as error:
        theirs = type(error).__name__
    field_row("C7 sparse", "torch", theirs, "4.4721", peer_is_wrong=theirs.endswith("Error"))


def test_c14_equal_float32_gradients_drift(field_row) -> None:
    """Found while measuring: one float32 sum over 2.5 million equal numbers, on the CPU."""
    grads = [torch.full((2_500_000,), 0.7)]
    true = norm_of(parameters(grads))
    assert float(tg.get_total_norm(grads)) == pytest.approx(true, rel=1e-6)
    theirs = abs(float(torch.nn.utils.get_total_norm(grads)) / true - 1)
    field_row("C14 equal float32 gradients", "torch", f"{theirs:.1e} off", "below 1e-6", peer_is_wrong=theirs > 1e-4)


def test_c16_first_norm_of_many_numbers_drifts(field_row) -> None:
    """Found while measuring: torch adds up |x| one by one in float32, on the CPU."""
    grads = [torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))]
    true = float(grads[0].double().abs().sum())
    ours = abs(float(tg.get_total_norm(grads, 1.0)) / true - 1)
    assert ours < 1e-6
    theirs = abs(float(torch.nn.utils.get_total_norm(grads, 1.0)) / true - 1)
    field_row("C16 1-norm of ten million", "torch", f"{theirs:.1e} off", f"{ours:.1e} off", peer_is_wrong=theirs > 1e-3)
