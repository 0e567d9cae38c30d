"""What happens between the last collective and the optimizer when ranks did not receive the same, or too much."""

import pytest
import torch

import tightgrad as tg
from support.training import on_ranks
from tightgrad.core.errors import PayloadError, RankMismatchError
from tightgrad.feedback import EF21, MomentumCorrection
from tightgrad.sync.same_sum import check_same_sum


def told(norms, failures=((), (), ())):
    def body(collective):
        check_same_sum(failures[collective.rank], torch.tensor(norms[collective.rank]), collective)

    return on_ranks(3, body)


@pytest.mark.parametrize(
    "norms",
    [(1.0, 1.0, 1.0), (1.0, 1.000001, 1.0), (0.0, 0.0, 0.0), (torch.nan,) * 3, (torch.inf, torch.nan, torch.inf)],
)
def test_the_same_to_rounding_is_the_same(norms):
    assert told(norms) == [None] * 3


@pytest.mark.parametrize("norms", [(1.0, 1.001, 1.0), (torch.nan, 1.0, 1.0), (1.0, 1.0, torch.inf), (0.0, 1e-20, 0.0)])
def test_different_norms_end_the_step_everywhere(norms):
    for error in told(norms):
        assert isinstance(error, RankMismatchError)
        assert "the ranks received different gradients" in str(error)


def test_a_failure_is_told_to_all():
    errors = told((1.0, 1.0, 1.0), ((), ("twelve bytes are missing",), ()))
    assert all(isinstance(error, PayloadError) for error in errors)
    assert all("rank 1 received payloads that cannot be decoded" in str(error) for error in errors)
    assert ["twelve bytes" in str(error) for error in errors] == [False, True, False]


COMPRESS = {
    "float16": tg.Compress(tg.codecs.Cast("float16"), feedback=tg.ErrorFeedback()),
    "float16, 8-bit residual": tg.Compress(tg.codecs.Cast("float16"), feedback=tg.ErrorFeedback("int8")),
    "float16, gathered": tg.Compress(tg.codecs.Cast("float16"), tg.reducers.Gather(), EF21()),
    "sparse float16": tg.Compress(
        tg.codecs.TopK(0.5, values=tg.codecs.Cast("float16")), feedback=MomentumCorrection(momentum=0.5)
    ),
}


@pytest.mark.parametrize("name", COMPRESS)
def test_an_overflow_on_the_wire_that_is_set_to_zero_leaves_no_trace_in_the_state(name):
    """Every rank's gradient is finite, its float16 is not: under the policy "zero", inf stayed in the residual."""
    plan = tg.Plan(compress=COMPRESS[name], guard=tg.Guard("zero"))

    def body(collective):
        model = torch.nn.Linear(600, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)
        for size in (1.0, 1e6, 1.0, 1.0):
            batch = torch.full((1, 600), 2.0 + collective.rank)
            batch[0, :3] *= size
            for window in pipe.windows([batch]):
                for inputs in window:
                    pipe.backward(model(inputs).sum())
                record = pipe.step()
            assert not record.skipped
            assert record.residual_norm is None or record.residual_norm < torch.inf
            for slot, values in pipe.state.slots.items():
                held = plan.slots[slot].values(values["weight"])
                assert bool(held.isfinite().all()), (slot, size)
        assert bool(model.weight.isfinite().all())
        if "ef21_total" in pipe.state.slots:
            return pipe.state.slots["ef21_estimate"]["weight"], pipe.state.slots["ef21_total"]["weight"]
        return None

    results = on_ranks(2, body)
    for result in results:
        assert not isinstance(result, Exception), result
    if results[0] is not None:
        estimates = sum(estimate for estimate, _ in results)
        assert torch.allclose(estimates, results[0][1], rtol=1e-6), "totals are the sum of the ranks' estimates"
