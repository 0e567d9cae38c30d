"""Chain and ByName: order, groups, state, JSON."""

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.clip.norm import total_norm
from tightgrad.core.types import State


def test_a_chain_runs_in_order() -> None:
    grads = {"weight": torch.tensor([3.0, 0.5])}
    clipped = tg.clip.Chain((tg.clip.Value(1.0), tg.clip.GlobalNorm(0.5))).clip_(grads, {}, total_norm, {})
    expected = torch.tensor([1.0, 0.5]) * 0.5 / torch.tensor([1.0, 0.5]).norm()
    torch.testing.assert_close(grads["weight"], expected)
    assert float(clipped.total_norm) == pytest.approx(float(torch.tensor([3.0, 0.5]).norm()))
    assert float(clipped.clip_coef) == pytest.approx(0.5 / float(torch.tensor([3.0, 0.5]).norm()))


def test_two_of_a_kind_remember_apart() -> None:
    chain = tg.clip.Chain((tg.clip.AutoClip(100.0, 5), tg.clip.AutoClip(10.0, 3)))
    assert len({slot.name for slot in chain.slots}) == 4
    state: State = {}
    for scale in (1.0, 2.0, 4.0):
        state = chain.clip_({"weight": torch.full((4,), scale)}, {}, total_norm, state).state
    assert set(state) == {slot.name for slot in chain.slots}
    assert state["0/autoclip_norms"]["*"][:3].tolist() == [2.0, 4.0, 8.0]


def test_each_group_has_its_own_norm() -> None:
    clipper = tg.clip.ByName((("embedding.*", tg.clip.GlobalNorm(1.0)), ("frozen.*", None)), default=tg.clip.Value(0.5))
    grads = {
        "embedding.weight": torch.full((4,), 4.0),
        "embedding.bias": torch.full((4,), 3.0),
        "frozen.weight": torch.full((2,), 9.0),
        "linear.weight": torch.full((2,), 9.0),
    }
    before = total_norm(list(grads.values()))
    clipped = clipper.clip_(grads, {}, total_norm, {})
    torch.testing.assert_close(grads["embedding.weight"], torch.full((4,), 0.4))
    torch.testing.assert_close(grads["embedding.bias"], torch.full((4,), 0.3))
    torch.testing.assert_close(grads["frozen.weight"], torch.full((2,), 9.0))
    torch.testing.assert_close(grads["linear.weight"], torch.full((2,), 0.5))
    assert float(clipped.clip_coef) == pytest.approx(float(total_norm(list(grads.values())) / before))


def test_groups_in_a_pipeline_keep_their_bounds_and_their_histories() -> None:
    """A head with its own bound, embeddings with a history; resumed in the middle, it goes on as if it had not been."""
    clip = tg.clip.ByName((("0.*", tg.clip.AutoClip(50.0, 4)), ("2.*", tg.clip.GlobalNorm(1e-3))), tg.clip.Value(1e-2))
    batches = [torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]

    def made() -> tuple[nn.Sequential, tg.GradientPipeline]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=1.0), tg.Plan(clip=clip))

    def train(model: nn.Sequential, pipe: tg.GradientPipeline, part: list[torch.Tensor]) -> None:
        for window in pipe.windows(part):
            for batch in window:
                pipe.backward(model(batch).square().mean() * 100)
            before = [parameter.detach().clone() for parameter in model.parameters()]
            pipe.step()
            steps = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
            assert float(torch.cat([step.flatten() for step in steps[4:]]).norm()) == pytest.approx(1e-3, rel=1e-3)
            assert max(float(step.abs().max()) for step in steps[2:4]) == pytest.approx(1e-2, rel=1e-4)

    model, pipe = made()
    train(model, pipe, batches)
    other, resumed = made()
    train(other, resumed, batches[:3])
    saved = resumed.state_dict()
    assert "0.*/autoclip_norms" in saved["slots"]
    last = tg.attach(other, resumed.optimizer, tg.Plan(clip=clip))
    last.load_state_dict(saved)
    train(other, last, batches[3:])
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_groups_that_learn() -> None:
    clipper = tg.clip.ByName((("a", tg.clip.ZClip()), ("b", tg.clip.ZClip())))
    state = clipper.clip_({"a": torch.ones(4), "b": torch.ones(9)}, {}, total_norm, {}).state
    assert state["a/zclip_statistics"]["*"][1] == 2.0
    assert state["b/zclip_statistics"]["*"][1] == 3.0


@pytest.mark.parametrize(
    "clipper",
    [
        tg.clip.Chain((tg.clip.AGC(exclude=("head.*",)), tg.clip.ZClip())),
        tg.clip.ByName((("a.*", tg.clip.PerTensorNorm(1.0)), ("b", None)), default=tg.clip.AdaGC()),
        tg.clip.BlockRMS(1.0),
        tg.clip.AutoClip(),
    ],
)
def test_json_round_trip(clipper: tg.clip.Chain) -> None:
    plan = tg.Plan(clip=clipper)
    assert tg.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "make",
    [
        lambda: tg.clip.Chain(()),
        lambda: tg.clip.Chain((tg.clip.GlobalNorm,)),
        lambda: tg.clip.ByName((("a", 1.0),)),
        lambda: tg.clip.ByName((("a", None), ("a", None))),
        lambda: tg.clip.ByName((), default=1.0),
    ],
)
def test_settings_are_checked(make: object) -> None:
    with pytest.raises(tg.ConfigError):
        make()  # type: ignore[operator]
