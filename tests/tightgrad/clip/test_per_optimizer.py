"""PerOptimizer: a norm and a bound for what each optimizer steps, alone and in a pipeline."""

import copy

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.norm import total_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import State

BOTH = tg.clip.PerOptimizer((tg.clip.GlobalNorm(1.0), tg.clip.GlobalNorm(0.5)))


def held() -> list[list[str]]:
    return [["0.weight", "2.weight"], ["0.bias", "2.bias"]]


def drawn(scale: float = 3.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (5, 4), "0.bias": (5,), "2.weight": (3, 5), "2.bias": (3,)}
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def norm_of(grads: dict[str, Tensor], names: list[str]) -> float:
    return float(torch.cat([grads[name].double().flatten() for name in names]).norm())


def test_each_group_has_a_norm_and_a_bound_of_its_own() -> None:
    grads = drawn()
    before = copy.deepcopy(grads)
    clipped = BOTH.for_optimizers(held).clip_(grads, {}, total_norm, {})
    for names, bound, place in zip(held(), (1.0, 0.5), "01", strict=True):
        factor = bound / norm_of(before, names)
        for name in names:
            torch.testing.assert_close(grads[name], before[name] * factor, rtol=1e-6, atol=0)
        assert float(clipped.groups[place].total_norm) == pytest.approx(norm_of(before, names), rel=1e-6)
        assert float(clipped.groups[place].clip_coef) == pytest.approx(factor, rel=1e-6)
    assert float(clipped.total_norm) == pytest.approx(norm_of(before, list(before)), rel=1e-6)
    assert float(clipped.clip_coef) == pytest.approx(norm_of(grads, list(grads)) / norm_of(before, list(before)))


def test_none_leaves_a_group_alone_and_so_is_what_no_optimizer_holds() -> None:
    grads = {**drawn(), "frozen": torch.full((4,), 1e6)}
    before = copy.deepcopy(grads)
    clipper = tg.clip.PerOptimizer((None, tg.clip.GlobalNorm(0.5))).for_optimizers(held)
    clipped = clipper.clip_(grads, {}, total_norm, {})
    for name in (*held()[0], "frozen"):
        assert torch.equal(grads[name], before[name])
    assert norm_of(grads, held()[1]) == pytest.approx(0.5)
    assert float(clipped.groups["0"].clip_coef) == 1.0
    assert float(clipped.groups["0"].total_norm) == pytest.approx(norm_of(before, held()[0]), rel=1e-6)


def test_below_the_bounds_nothing_is_touched() -> None:
    grads = drawn(1e-3)
    versions = [grad._version for grad in grads.values()]
    clipped = BOTH.for_optimizers(held).clip_(grads, {}, total_norm, {})
    assert [grad._version for grad in grads.values()] == versions
    assert float(clipped.clip_coef) == 1.0


@pytest.mark.parametrize("grads", [{}, {"0.bias": torch.ones(2)}, {"0.bias": torch.zeros(2)}])
def test_a_group_without_gradients_is_nothing(grads: dict[str, Tensor]) -> None:
    clipped = BOTH.for_optimizers(held).clip_(grads, {}, total_norm, {})
    assert float(clipped.groups["0"].clip_coef) == 1.0
    assert float(clipped.groups["0"].total_norm) == 0.0


def test_two_of_a_kind_remember_apart() -> None:
    clipper = tg.clip.PerOptimizer((tg.clip.ZClip(), tg.clip.ZClip())).for_optimizers(lambda: [["a"], ["b"]])
    state: State = {}
    for _ in range(2):
        state = clipper.clip_({"a": torch.ones(4), "b": torch.ones(9)}, {}, total_norm, state).state
    assert set(state) == {slot.name for slot in clipper.slots}
    assert state["0/zclip_statistics"]["*"].tolist()[:2] == [2.0, 2.0]
    assert state["1/zclip_statistics"]["*"].tolist()[:2] == [2.0, 3.0]


@pytest.mark.parametrize(
    "outer",
    [
        lambda inner: tg.clip.Chain((tg.clip.Value(2.0), inner)),
        lambda inner: tg.clip.ByName((("2.bias", None),), default=inner),
        lambda inner: tg.clip.PerOptimizer((inner, None)),
    ],
    ids=["chain", "by name", "per optimizer"],
)
def test_within_another_clipper_it_is_told_as_well(outer) -> None:
    clipper: Clipper = outer(BOTH)
    grads = drawn()
    with pytest.raises(tg.UsageError, match="for_optimizers"):
        clipper.clip_(copy.deepcopy(grads), {}, total_norm, {})
    told = clipper.for_optimizers(held)
    told.clip_(grads, {}, total_norm, {})
    assert norm_of(grads, held()[0]) == pytest.approx(1.0, rel=1e-6)
    assert told == clipper
    assert told.slots == clipper.slots


def test_json_has_the_clippers_by_place_and_not_the_names() -> None:
    plan = tg.Plan(clip=tg.clip.PerOptimizer([None, tg.clip.GlobalNorm(0.5)]))
    assert plan.to_config()["clip"]["clippers"][0] is None
    assert plan.to_config()["clip"]["clippers"][1]["id"] == "global_norm"
    assert tg.Plan.from_json(plan.to_json()) == plan
    assert tg.Plan(clip=plan.clip.for_optimizers(held)).to_json() == plan.to_json()


@pytest.mark.parametrize("clippers", [(), (1.0,), tg.clip.GlobalNorm(1.0), {"muon": None}, (tg.clip.GlobalNorm, None)])
def test_settings_are_checked(clippers: object) -> None:
    with pytest.raises(tg.ConfigError, match=r"PerOptimizer\(\(GlobalNorm\(1.0\), GlobalNorm\(0.5\)\)\)"):
        tg.clip.PerOptimizer(clippers)  # type: ignore[arg-type]


def test_a_parameter_of_two_optimizers_is_named() -> None:
    with pytest.raises(tg.ConfigError, match=r"'b' is held by two optimizers"):
        BOTH.for_optimizers(lambda: [["a", "b"], ["b"]])


class Seen(torch.optim.SGD):
    """Remembers the gradients that it was given."""

    def step(self, closure=None):
        self.seen = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]
        super().step()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return [p for p in model.parameters() if p.dim() == 2], [p for p in model.parameters() if p.dim() != 2]


def stepped(pipe: tg.GradientPipeline, model: nn.Module, count: int = 1, scale: float = 100.0) -> list[tg.StepRecord]:
    torch.manual_seed(1)
    records = []
    for window in pipe.windows([torch.randn(6, 4) for _ in range(count)]):
        for batch in window:
            pipe.backward(scale * model(batch).square().mean())
        records.append(pipe.step())
    return records


def test_in_a_pipeline_each_optimizer_gets_its_own_bound_and_the_record_keeps_both() -> None:
    model = net()
    matrices, vectors = split(model)
    optimizers = [Seen(matrices, lr=0.1), Seen(vectors, lr=0.1)]
    (record,) = stepped(tg.attach(model, optimizers, tg.Plan(clip=BOTH)), model)
    norms = [float(total_norm(optimizer.seen)) for optimizer in optimizers]
    assert norms == pytest.approx([1.0, 0.5], rel=1e-6)
    assert record.group_norms.keys() == record.group_clip_coefs.keys() == {"0", "1"}
    for place, norm in zip("01", norms, strict=True):
        assert record.group_norms[place] * record.group_clip_coefs[place] == pytest.approx(norm, rel=1e-6)
    assert record.grad_norm == pytest.approx(sum(norm**2 for norm in record.group_norms.values()) ** 0.5, rel=1e-6)
    assert record.clip_coef == pytest.approx(1.25**0.5 / record.grad_norm, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda m, v: [torch.optim.Muon(m, lr=0.02), torch.optim.AdamW(v, lr=0.01)],
        lambda m, v: [torch.optim.AdamW(m, lr=0.01, fused=True), torch.optim.SGD(v, lr=0.1, fused=True)],
    ],
    ids=["muon", "fused"],
)
def test_a_pipeline_is_the_loop_by_hand(make) -> None:
    expected, model = net(), net()
    theirs = make(*split(expected))
    torch.manual_seed(1)
    for batch in [torch.randn(6, 4) for _ in range(3)]:
        (100.0 * expected(batch).square().mean()).backward()
        for parameters, bound in zip(split(expected), (1.0, 0.5), strict=True):
            tg.clip_grad_norm_(parameters, bound)
        for optimizer in theirs:
            optimizer.step()
            optimizer.zero_grad()
    stepped(tg.attach(model, make(*split(model)), tg.Plan(clip=BOTH)), model, 3)
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_a_parameter_that_moves_to_the_other_optimizer_is_clipped_there() -> None:
    model = net()
    matrices, vectors = split(model)
    optimizers = [Seen(matrices, lr=0.0), Seen(vectors, lr=0.0)]
    pipe = tg.attach(model, optimizers, tg.Plan(clip=BOTH))
    stepped(pipe, model)
    optimizers[1].param_groups[0]["params"].append(optimizers[0].param_groups[0]["params"].pop())
    stepped(pipe, model)
    assert [len(optimizer.seen) for optimizer in optimizers] == [1, 3]
    assert [float(total_norm(one.seen)) for one in optimizers] == pytest.approx([1.0, 0.5], rel=1e-6)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("wrap", [lambda clip: clip, lambda clip: tg.clip.Chain((tg.clip.Value(1.0), clip))])
def test_another_number_of_optimizers_is_refused_at_attach(count: int, wrap) -> None:
    model = net()
    parameters = list(model.parameters())
    groups = [parameters[place::count] for place in range(count)]
    optimizers = [torch.optim.SGD(group, lr=0.1) for group in groups]
    with pytest.raises(tg.ConfigError, match=f"PerOptimizer has 2 clippers, and the number of optimizers is {count};"):
        tg.attach(model, optimizers, tg.Plan(clip=wrap(BOTH)))
    tg.attach(model, optimizers, tg.Plan(clip=tg.clip.GlobalNorm(1.0)))


def test_local_updates_have_one_outer_optimizer() -> None:
    with pytest.raises(tg.ConfigError, match="2 clippers, and the number of optimizers is 1;"):
        tg.attach_local(net(), tg.DiLoCo(every=2, plan=tg.Plan(clip=BOTH)))
    model = net()
    outer = tg.attach_local(
        model, tg.LocalSGD(every=1, plan=tg.Plan(clip=tg.clip.PerOptimizer((tg.clip.GlobalNorm(1e-3),))))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    record = outer.step()
    assert record is not None
    assert record.grad_norm * record.clip_coef == pytest.approx(1e-3, rel=1e-5)
