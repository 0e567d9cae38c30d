"""`pipe.run_cached`: the gradient of a contrastive loss is that of the big batch, or it is said why it cannot be."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

import tightgrad as tg
from support.contrastive import SIZE, Captured, Towers, batches, big_batch, encode, flat, loss_of, relative
from support.training import on_ranks


def run(
    model=None,
    *,
    micro_batches=4,
    encode=encode,
    loss=loss_of,
    loader=None,
    plan=None,
    collective=None,
    weight=lambda batch: len(batch[0]),
    **options,
):
    """The gradient that the optimizer is given, and the record."""
    model = model or Towers()
    optimizer = Captured(model.parameters())
    plan = plan or tg.Plan(accumulate=tg.Accumulate(micro_batches))
    pipe = tg.attach(model, optimizer, plan, weight=weight, collective=collective)
    rank, ranks = (0, 1) if collective is None else (collective.rank, collective.world_size)
    loader = batches(micro_batches, rank, ranks) if loader is None else loader
    for window in pipe.windows(loader):
        record = pipe.run_cached(window, lambda b: encode(model, b), lambda z: loss(model, z), **options)
    return optimizer.seen, record


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("temperature", ["in the loss", "among the representations", "fixed"])
def test_the_gradient_is_that_of_the_big_batch(micro_batches, temperature):
    model = Towers()
    ways = {
        "in the loss": (encode, loss_of),
        "among the representations": (
            lambda model, batch: {"z": encode(model, batch), "t": model.temperature.exp()},
            lambda model, tree: model.contrast(*tree["z"], tree["t"]),
        ),
        "fixed": (encode, lambda model, z: model.contrast(*z, torch.tensor(10.0))),
    }
    made, loss = ways[temperature]
    seen, record = run(model, micro_batches=micro_batches, encode=made, loss=loss)
    target, value = big_batch(Towers(), scale=10.0 if temperature == "fixed" else None)
    assert relative(seen, target) < 1e-6
    assert record.loss == pytest.approx(value, rel=1e-6)
    assert (record.micro_batches, record.weight) == (micro_batches, SIZE)


@pytest.mark.parametrize("sizes", [(5, 11, 16), (1, 31), (30, 1, 1)])
def test_ragged_micro_batches(sizes):
    seen, _ = run(
        loader=[tuple(part.split(sizes)[k] for part in batches(1)[0]) for k in range(len(sizes))], micro_batches=3
    )
    assert relative(seen, big_batch(Towers())[0]) < 1e-6


@pytest.mark.parametrize("shape", ["tuple", "list", "nested", "one tensor"])
def test_representations_are_any_tree(shape):
    trees = {
        "tuple": (lambda a, b: (a, b), lambda z: z),
        "list": (lambda a, b: [a, b], lambda z: z),
        "nested": (
            lambda a, b: {"towers": (a, [b]), "ids": torch.arange(len(a))},
            lambda z: (z["towers"][0], z["towers"][1][0]),
        ),
        "one tensor": (lambda a, b: torch.stack([a, b], 1), lambda z: (z[:, 0], z[:, 1])),
    }
    pack, unpack = trees[shape]
    seen, _ = run(
        encode=lambda model, batch: pack(*encode(model, batch)), loss=lambda model, z: loss_of(model, unpack(z))
    )
    assert relative(seen, big_batch(Towers())[0]) < 1e-6


def test_a_batch_may_be_used_up():
    loader = [{"first": first, "second": second} for first, second in batches(4)]
    seen, _ = run(
        loader=[{name: part / 2 for name, part in batch.items()} for batch in loader],
        plan=tg.Plan(accumulate=tg.Accumulate(4)),
        weight=lambda batch: len(batch["first"]),
        encode=lambda model, batch: (model(batch.pop("first").mul_(2)), model(batch.pop("second").mul_(2))),
    )
    assert relative(seen, big_batch(Towers())[0]) < 1e-6


def test_labels_come_along():
    """A supervised contrastive loss: which rows belong together is known from what encode returns beside them."""

    def supervised(model, z):
        scores = z["z"] @ z["z"].T * model.temperature.exp()
        same = (z["y"][:, None] == z["y"][None]).float()
        return -(scores.log_softmax(1) * same).sum() / same.sum()

    seen, _ = run(encode=lambda model, batch: {"z": model(batch[0]), "y": (batch[0][:, 0] > 0).long()}, loss=supervised)
    model = Towers().double()
    first = batches(1)[0][0].double()
    supervised(model, {"z": model(first), "y": (first[:, 0] > 0).long()}).backward()
    assert relative(seen, flat(p.grad for p in model.parameters())) < 1e-6


def nt_xent(model, z):
    both = torch.cat(z)
    scores = (both @ both.T * model.temperature.exp()).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(both)).roll(len(z[0])))


def barlow(model, z):
    first, second = ((part - part.mean(0)) / part.std(0) for part in z)
    return (first.T @ second / len(first) - torch.eye(8)).square().sum()


def hardest(model, z):
    distances = torch.cdist(*z)
    others = distances.masked_fill(torch.eye(len(distances), dtype=torch.bool), torch.inf)
    return F.relu(distances.diagonal() - others.amin(1) + 1.0).mean()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("loss", [nt_xent, barlow, hardest])
def test_other_losses_that_compare_samples(loss, ranks):
    model, (batch,) = Towers().double(), tree_map(torch.Tensor.double, batches(1))
    value = loss(model, encode(model, batch))
    value.backward()
    wanted = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())

    def body(collective):
        loader = tree_map(torch.Tensor.double, batches(4, collective.rank, ranks))
        return run(Towers().double(), loss=loss, loader=loader, collective=collective)

    for seen, record in on_ranks(ranks, body):
        assert relative(seen, wanted) < 1e-12
        assert record.loss == pytest.approx(float(value.detach()), rel=1e-12)
    assert tg.check_loss(model, lambda b: loss(model, encode(model, b)), batch).is_additive is False


def test_representations_cached_by_hand():
    """The surrogate whose gradient is that of the loss is a sum over samples, which windows take as one."""
    model = Towers()
    optimizer = Captured(model.parameters())
    plan = tg.Plan(accumulate=tg.Accumulate(4, loss_reduction="sum", fetch="window"))
    pipe = tg.attach(model, optimizer, plan)
    for window in pipe.windows(batches(4)):
        with torch.no_grad():
            kept = [torch.cat(rows) for rows in zip(*(encode(model, b) for b in window.batches), strict=True)]
        leaves = [rows.requires_grad_() for rows in kept]
        wanted = [g.split(8) for g in torch.autograd.grad(Towers.contrast(*leaves, torch.tensor(10.0)), leaves)]
        for batch, *shares in zip(window, *wanted, strict=True):
            surrogate = sum((z * g).sum() for z, g in zip(encode(model, batch), shares, strict=True))
            pipe.backward(surrogate * window.total_weight)
        pipe.step()
    assert relative(optimizer.seen, big_batch(Towers(), scale=10.0)[0]) < 1e-6


def test_dropout_is_replayed():
    """What the two passes draw is the same; so is what is drawn after the step, as after one pass."""
    model = Towers(dropout=0.5)
    torch.manual_seed(7)
    drawing = lambda model, z: loss_of(model, z) + 0 * torch.rand(())  # noqa: E731
    seen, _ = run(copy.deepcopy(model), loss=drawing)
    after = torch.rand(3)
    torch.manual_seed(7)
    parts = [encode(model, batch) for batch in batches(4)]
    drawing(model, tuple(map(torch.cat, zip(*parts, strict=True)))).backward()
    assert relative(seen, flat(p.grad for p in model.parameters())) < 1e-6
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_is_divided_by_what_the_window_weighs(reduction):
    def summed(model, z):
        return loss_of(model, z) * (len(z[0]) if reduction == "sum" else 1)

    plan = tg.Plan(accumulate=tg.Accumulate(4, loss_reduction=reduction))
    seen, record = run(loss=summed, plan=plan)
    target, value = big_batch(Towers())
    assert relative(seen, target) < 1e-6
    assert record.loss == pytest.approx(value, rel=1e-6)


def test_a_micro_batch_of_no_weight_is_left_out():
    bad = tuple(torch.full_like(part, torch.nan) for part in batches(4)[0])
    model = Towers()
    optimizer = Captured(model.parameters())
    weight = lambda batch: 0 if batch[0].isnan().any() else len(batch[0])  # noqa: E731
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(5)), weight=weight)
    for window in pipe.windows([*batches(4)[:2], bad, *batches(4)[2:]]):
        record = pipe.run_cached(window, lambda b: encode(model, b), lambda z: loss_of(model, z))
    assert relative(optimizer.seen, big_batch(Towers())[0]) < 1e-6
    assert record.weight == SIZE


def test_clip_and_loss_scale_follow_as_in_any_step():
    plan = tg.Plan(accumulate=tg.Accumulate(4), clip=tg.clip.GlobalNorm(0.01), loss_scale=tg.LossScale(initial=1024.0))
    seen, record = run(plan=plan)
    target, _ = big_batch(Towers())
    assert relative(seen, target * (0.01 / target.norm())) < 1e-5
    assert record.grad_norm == pytest.approx(float(target.norm()), rel=1e-5)


def test_several_losses_add_up():
    plan = tg.Plan(accumulate=tg.Accumulate(4, losses=("pairs", "size")))

    def both(model, z):
        return {"pairs": loss_of(model, z), "size": z[0].square().sum(1).mean()}

    seen, _ = run(plan=plan, loss=both, encode=lambda model, batch: (model.body(batch[0]), model.body(batch[1])))
    model = Towers().double()
    z = tuple(model.body(part.double()) for part in batches(1)[0])
    sum(both(model, z).values()).backward()
    assert relative(seen, flat(p.grad for p in model.parameters())) < 1e-6


def test_autocast_around_both_passes_loses_no_gradient():
    with torch.autocast("cpu", torch.bfloat16):
        seen, _ = run()
    assert relative(seen, big_batch(Towers())[0]) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = Towers().to(dtype)
    loader = [tree_map(lambda part: part.to(dtype), batch) for batch in batches(4)]
    seen, _ = run(model, loader=loader)
    assert relative(seen, big_batch(Towers())[0]) < (1e-12 if dtype is torch.float64 else 0.1)


def test_a_frozen_tower_is_only_compared_with():
    model = Towers()
    seen, _ = run(model, encode=lambda model, b: (model(b[0]), model(b[1]).detach()))
    other = Towers().double()
    a, b = (part.double() for part in batches(1)[0])
    other.contrast(other(a), other(b).detach(), other.temperature.exp()).backward()
    assert relative(seen, flat(p.grad for p in other.parameters())) < 1e-6


@pytest.mark.parametrize("sees", ["all_ranks", "own_rank"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_on_two_ranks_of_a_plain_module(sees, micro_batches):
    def body(collective):
        def gathering(model, z):
            return loss_of(model, tuple(tg.gather_with_grad(part, collective) for part in z))

        loss = gathering if sees == "own_rank" else loss_of
        return run(micro_batches=micro_batches, loss=loss, collective=collective, sees=sees)

    for seen, record in on_ranks(2, body):
        assert relative(seen, big_batch(Towers())[0]) < 1e-6
        assert record.weight == SIZE


def test_a_temperature_among_the_representations_counts_once_on_two_ranks():
    def body(collective):
        return run(
            encode=lambda model, batch: {"z": encode(model, batch), "t": model.temperature.exp()},
            loss=lambda model, tree: model.contrast(*tree["z"], tree["t"]),
            collective=collective,
        )[0]

    for seen in on_ranks(2, body):
        assert relative(seen, big_batch(Towers())[0]) < 1e-6


def test_rows_of_ones_own_against_those_of_all():
    """As in CLIP with local losses: each rank has its own rows of the scores."""

    def body(collective):
        def own_rows(model, z):
            own = torch.arange(len(z[0])) + collective.rank * len(z[0])
            first, second = (tg.gather_with_grad(part, collective) for part in z)
            scale = model.temperature.exp()
            return (F.cross_entropy(z[0] @ second.T * scale, own) + F.cross_entropy(z[1] @ first.T * scale, own)) / 2

        return run(loss=own_rows, collective=collective, sees="own_rank")[0]

    for seen in on_ranks(2, body):
        assert relative(seen, big_batch(Towers())[0]) < 1e-6


def test_a_rank_without_batches_takes_part():
    def body(collective):
        return run(collective=collective, loader=batches(4) if collective.rank == 0 else [], micro_batches=4)[0]

    for seen in on_ranks(2, body):
        assert relative(seen, big_batch(Towers())[0]) < 1e-6


def test_ranks_may_have_different_numbers_of_samples():
    first, second = (part.split([20, 12]) for part in batches(1)[0])

    def body(collective):
        parts = [(first[collective.rank][k::2], second[collective.rank][k::2]) for k in range(2)]
        return run(collective=collective, loader=parts, micro_batches=2)[0]

    for seen in on_ranks(2, body):
        assert relative(seen, big_batch(Towers())[0]) < 1e-6


def test_a_codec_follows():
    plan = tg.Plan(accumulate=tg.Accumulate(4), compress=tg.Compress(tg.codecs.Cast("bfloat16")))
    for seen in on_ranks(2, lambda collective: run(plan=plan, collective=collective)[0]):
        assert 0 < relative(seen, big_batch(Towers())[0]) < 1e-2


@pytest.mark.parametrize("context", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_an_encoder_that_differentiates_on_its_way(context):
    """A gradient penalty a sample: the first pass then has a graph for a moment."""

    def penalised(model, batch):
        inputs = batch[0].clone().requires_grad_(True)
        rows = model(inputs)
        (slope,) = torch.autograd.grad(rows.sum(), inputs, create_graph=True)
        return rows, model(batch[1]), slope.square().sum(1)

    def loss(model, z):
        return loss_of(model, z[:2]) + z[2].mean()

    with context():
        seen, _ = run(micro_batches=4, encode=penalised, loss=loss)
        model = Towers()
        loss(model, penalised(model, batches(1)[0])).backward()
    target = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
    assert relative(seen, target) < (1e-5 if context is nullcontext else 3e-2)
