"""Eight-bit residuals, momentum correction and EF21."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tightgrad as tg
from tightgrad.checkpoint.folder import load_state, save_state
from tightgrad.checkpoint.save_folder import newest
from tightgrad.codecs import Cast, DensityWarmup, IntBlock, SizeAdaptive, TopK
from tightgrad.collectives import SingleCollective
from tightgrad.core.clock import StageClock
from tightgrad.core.collective import Collective
from tightgrad.core.errors import ConfigError, IncompatiblePlanError
from tightgrad.core.protocols import Codec, Feedback, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.feedback import EF21, MomentumCorrection
from tightgrad.feedback.eight_bit import EightBit
from tightgrad.feedback.error_feedback import EIGHT_BIT_RESIDUAL
from tightgrad.reducers import Gather
from tightgrad.sync.compressed import state_norm

FEEDBACKS = [tg.ErrorFeedback(), tg.ErrorFeedback("int8"), MomentumCorrection(), EF21()]


def normal(numel: int, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def run(feedback: Feedback, codec: Codec, grads: list[Grads], state: State | None = None) -> list[Reduced]:
    results = []
    held: State = state or {}
    for step, grad in enumerate(grads):
        context = ReduceContext(SingleCollective(), StepRng(0, step, 0), StageClock())

        def inner(values: Grads, held: State = held, context: ReduceContext = context) -> Reduced:
            return Gather().reduce(values, codec, held, context)

        results.append(feedback.reduce_({name: value.clone() for name, value in grad.items()}, held, inner))
        held = results[-1].state
    return results


@pytest.mark.parametrize("numel", [0, 1, 255, 256, 257, 1_000])
def test_eight_bits_hold_values_to_a_level(numel: int) -> None:
    values = normal(numel)
    held = EightBit().pack(values)
    assert held.numel() == numel + 4 * -(-numel // 256)
    assert EightBit().numel(held) == numel
    level = float(values.abs().max()) / 127 if numel else 0.0
    assert bool(((EightBit().unpack(held) - values).abs() <= level * 1.001).all())


def test_what_was_not_packed_does_not_fit() -> None:
    assert not EIGHT_BIT_RESIDUAL.fits(torch.zeros(10), (10,))
    assert not EIGHT_BIT_RESIDUAL.fits(EightBit().pack(torch.zeros(9)), (10,))
    assert EIGHT_BIT_RESIDUAL.fits(EightBit().pack(torch.zeros(2, 5)), (2, 5))


def test_eight_bits_have_no_bias() -> None:
    """Entries far below a level of their block add up over steps, which rounding to nearest would forget."""
    steps = 400
    grads = [{"w": torch.cat([torch.full((1,), 30.0), 0.02 + 0.01 * normal(255, step)])} for step in range(steps)]
    results = run(tg.ErrorFeedback("int8"), TopK(1 / 256, values=Cast("float32")), grads)
    left = EightBit().unpack(results[-1].state["residual"]["w"])
    sent = sum(result.total["w"] for result in results)
    put_in = sum(grad["w"] for grad in grads)
    assert float((left + sent)[1:].mean()) == pytest.approx(float(put_in[1:].mean()), rel=0.15)


def test_eight_bits_follow_float32() -> None:
    grads = [{"w": normal(2_000, step)} for step in range(30)]
    exact, held = (run(tg.ErrorFeedback(kind), TopK(0.1), grads) for kind in ("float32", "int8"))
    delivered = [sum(result.total["w"] for result in results) for results in (exact, held)]
    assert float((delivered[0] - delivered[1]).norm() / delivered[0].norm()) < 0.2
    assert state_norm(held[-1].state, EIGHT_BIT_RESIDUAL) == pytest.approx(
        float(exact[-1].state["residual"]["w"].norm()), rel=0.05
    )


def test_eight_bit_residuals_are_added_when_ranks_leave(tmp_path: object) -> None:
    """Two ranks saved, one loads: the sum of what they hold, not the sum of the bytes."""
    values = [normal(300, seed) for seed in range(2)]

    def save(collective: Collective) -> None:
        state = {
            "version": 1,
            "step": 3,
            "consecutive_skips": 0,
            "slots": {"residual": {"w": EightBit().pack(values[collective.rank])}},
            "num_consumed": 0,
            "open_window": None,
        }
        save_state(lambda: state, tmp_path, collective)  # type: ignore[arg-type]

    tg.collectives.run_threaded(2, save)
    plan = tg.Plan(compress=tg.Compress(TopK(0.1), feedback=tg.ErrorFeedback("int8")))
    loaded = load_state(tmp_path, newest(tmp_path), plan.slots, 0, 1)  # type: ignore[arg-type]
    total = EightBit().unpack(loaded["slots"]["residual"]["w"])
    assert float((total - values[0] - values[1]).abs().max()) < 0.15


def test_momentum_correction_is_the_papers() -> None:
    """Against a plain loop over DGC's algorithm 4, with float32 values."""
    grads = [{"w": normal(50, step)} for step in range(8)]
    results = run(MomentumCorrection(0.9), TopK(0.1, values=Cast("float32")), grads)
    u, v = torch.zeros(50), torch.zeros(50)
    for result, grad in zip(results, grads, strict=True):
        u = 0.9 * u + grad["w"]
        v = v + u
        mask = torch.zeros(50, dtype=torch.bool)
        mask[v.abs().topk(5).indices] = True
        assert torch.allclose(result.total["w"], torch.where(mask, v, 0.0), atol=1e-6)
        u, v = torch.where(mask, 0.0, u), torch.where(mask, 0.0, v)
    assert torch.allclose(results[-1].state["velocity"]["w"], u, atol=1e-6)
    assert torch.allclose(results[-1].state["residual"]["w"], v, atol=1e-6)


def test_a_tensor_sent_in_full_gets_plain_momentum() -> None:
    grads = [{"bias": normal(10, step)} for step in range(5)]
    results = run(MomentumCorrection(0.5), SizeAdaptive(TopK(0.1)), grads)
    u = torch.zeros(10)
    for result, grad in zip(results, grads, strict=True):
        u = 0.5 * u + grad["bias"]
        assert torch.allclose(result.total["bias"], u, atol=1e-6)


def test_ef21_follows_a_constant_gradient_to_the_end() -> None:
    grad = normal(40)
    results = run(EF21(), TopK(0.1, values=Cast("float32")), [{"w": grad}] * 10)
    errors = [float((result.total["w"] - grad).norm()) for result in results]
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("feedback", FEEDBACKS, ids=repr)
def test_unused_parameters_keep_what_they_have_and_old_states_stay(feedback: Feedback) -> None:
    both = {"a": normal(64), "b": normal(64, 1)}
    first = run(feedback, TopK(0.1), [both])[0]
    copies = {slot: {name: held.clone() for name, held in row.items()} for slot, row in first.state.items()}
    second = run(feedback, TopK(0.1), [{"a": normal(64, 2)}], first.state)[0]
    second.total["a"].fill_(torch.nan)
    for slot, row in copies.items():
        assert all(torch.equal(first.state[slot][name], held) for name, held in row.items())
        assert torch.equal(second.state[slot]["b"], row["b"])
        assert not bool(second.state[slot]["a"].float().isnan().any())


@pytest.mark.parametrize("feedback", FEEDBACKS, ids=repr)
def test_plans_round_trip_and_know_their_slots(feedback: Feedback) -> None:
    codec = DensityWarmup(TopK(0.001, values=IntBlock(4)), start=0.1, steps=10)
    plan = tg.Plan(compress=tg.Compress(codec, feedback=feedback))
    assert tg.Plan.from_json(plan.to_json()) == plan
    results = run(feedback, codec, [{"w": normal(100)}])
    assert set(plan.slots) == set(results[0].state)
    for name, slot in plan.slots.items():
        assert slot.fits(results[0].state[name]["w"], (100,))


def test_what_momentum_correction_does_not_go_with() -> None:
    with pytest.raises(IncompatiblePlanError, match="sparse codec"):
        tg.Compress(IntBlock(8), feedback=MomentumCorrection())
    with pytest.raises(ConfigError, match="below 1"):
        MomentumCorrection(1.0)
    with pytest.raises(ConfigError, match="int8"):
        tg.ErrorFeedback("int4")


@pytest.mark.parametrize("feedback", FEEDBACKS, ids=repr)
def test_a_skipped_step_leaves_the_pipeline_as_it_was(feedback: Feedback) -> None:
    model = torch.nn.Linear(20, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    plan = tg.Plan(compress=tg.Compress(TopK(0.1), feedback=feedback), guard=tg.Guard("skip", max_consecutive_skips=10))
    pipe = tg.attach(model, optimizer, plan)
    loader = [torch.ones(4, 20), torch.full((4, 20), torch.inf), torch.ones(4, 20)]
    states: list[dict[str, dict[str, Tensor]]] = []
    read: Callable[[], dict[str, dict[str, Tensor]]] = lambda: pipe.state_dict()["slots"]  # noqa: E731
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        record = pipe.step()
        states.append(read())
        assert record.skipped == (len(states) == 2)
    assert all(
        torch.equal(held, states[1][slot][name]) for slot, row in states[0].items() for name, held in row.items()
    )
    assert any(not torch.equal(held, states[2][s][n]) for s, row in states[0].items() for n, held in row.items())
