"""Sparse gradients, as embeddings make them, with an index that stands twice: every clipper does what it does to dense
ones.
"""

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from conformance.cases import CLIPPERS
from tightgrad.clip.dtensor import zero_nonfinite_
from tightgrad.clip.norm import total_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import State

SHAPE = (6, 4)


def drawn(seed: int, scale: float = 3.0) -> Tensor:
    """Not coalesced: row 2 stands twice, and row 5 not at all."""
    values = torch.randn(5, SHAPE[1], generator=torch.Generator().manual_seed(seed)) * scale
    return torch.sparse_coo_tensor(torch.tensor([[2, 0, 2, 3, 4]]), values, SHAPE, check_invariants=True)


def needs_dense(clipper: Clipper) -> bool:
    if isinstance(clipper, tg.clip.Chain):
        return any(map(needs_dense, clipper.clippers))
    if isinstance(clipper, tg.clip.ByName):
        return any(needs_dense(one) for one in (*(rule for _, rule in clipper.rules), clipper.default) if one)
    return isinstance(clipper, tg.clip.AGC)


@pytest.mark.parametrize("clipper", [case.clipper for case in CLIPPERS], ids=repr)
def test_sparse_as_dense(clipper: Clipper) -> None:
    sparse_state: State = {}
    dense_state: State = {}
    weights = {"embedding": nn.Parameter(torch.ones(SHAPE)), "linear": nn.Parameter(torch.ones(3))}
    if needs_dense(clipper):
        with pytest.raises(tg.UnsupportedError, match="sparse"):
            clipper.clip_({"embedding": drawn(0)}, weights, total_norm, {})
        return
    for seed in range(4):
        sparse = {"embedding": drawn(seed), "linear": torch.full((3,), 2.0)}
        dense = {"embedding": drawn(seed).to_dense(), "linear": torch.full((3,), 2.0)}
        with torch.no_grad():
            found = clipper.clip_(sparse, weights, total_norm, sparse_state)
            wanted = clipper.clip_(dense, weights, total_norm, dense_state)
        sparse_state, dense_state = found.state, wanted.state
        assert sparse["embedding"].is_sparse
        for name, grad in dense.items():
            torch.testing.assert_close(sparse[name].to_dense(), grad, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.total_norm, wanted.total_norm, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(found.clip_coef, wanted.clip_coef, rtol=1e-6, atol=0.0)


def test_value_limits_sums_not_parts() -> None:
    """Parts of 0.8 each pass a limit of 1; their sum does not."""
    grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([0.8, 0.8]), (3,), check_invariants=True)
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = grad
    tg.clip_grad_value_([weight], 1.0)
    assert weight.grad is grad
    assert weight.grad.to_dense().tolist() == [0.0, 1.0, 0.0]


def test_an_entry_whose_sum_is_not_finite_is_zeroed() -> None:
    values = torch.tensor([1.0, torch.nan, 2.0])
    grad = torch.sparse_coo_tensor(torch.tensor([[1, 1, 2]]), values, (3,), check_invariants=True)
    zero_nonfinite_([grad])
    assert grad.to_dense().tolist() == [0.0, 0.0, 2.0]
