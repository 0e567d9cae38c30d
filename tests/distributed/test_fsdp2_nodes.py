"""FSDP2 within two nodes of two ranks, compression between the nodes."""

import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, small_model
from tightgrad import codecs, feedback, reducers

PLANS = {
    "dense": tg.Compress(),
    "two shots": tg.Compress(codecs.IntBlock(4, block_size=8), feedback=tg.ErrorFeedback()),
    "sparse": tg.Compress(codecs.TopK(0.1), feedback=tg.ErrorFeedback()),
    "falls back": tg.Compress(codecs.TopK(0.1), feedback=tg.ErrorFeedback(), fallback="dense", max_relative_error=1e-9),
    "ef21": tg.Compress(codecs.TopK(0.5), feedback=feedback.EF21()),
}


def on_nodes():
    model = small_model()
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("node", "shard"))["shard"]
    fully_shard(model[3], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def attached(model, compress, optimizer=None, **options):
    """All ranks train one model: they say so."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"collective": tg.collectives.TorchCollective()} | options
    return tg.attach(model, optimizer, tg.Plan(compress=compress), **options)


def batches(count=5):
    generator = torch.Generator().manual_seed(dist.get_rank())
    return [
        (torch.randn(4, 20, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(count)
    ]


class Sum(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(list(parameters), {})
        self.total = [0.0] * len(self.param_groups[0]["params"])

    def step(self):
        self.total = [
            t + full(p.grad).double() for t, p in zip(self.total, self.param_groups[0]["params"], strict=True)
        ]


def run(model, compress, batches, poison=None, optimizer=None):
    optimizer = optimizer or Sum(model.parameters())
    plan = tg.Plan(tg.Accumulate(2), compress, guard=tg.Guard("skip", compare_every=2))
    pipe = tg.attach(model, optimizer, plan, collective=tg.collectives.TorchCollective())
    records = []
    for index, window in enumerate(pipe.windows(batches)):
        for inputs, labels in window:
            factor = float("nan") if (dist.get_rank(), index) == poison else 1.0
            pipe.backward(F.cross_entropy(model(inputs) * factor, labels))
        records.append(pipe.step())
    return optimizer, pipe, records


def all_plans():
    exact = run(DistributedDataParallel(small_model()), tg.Compress(), batches())[0].total
    results = {"exact": exact}
    for name, compress in PLANS.items():
        optimizer, pipe, records = run(on_nodes(), compress, batches())
        delivered = list(optimizer.total)
        shapes = [tuple(t.shape) for t in pipe.state.slots.get("residual", {}).values()]
        norm = records[-1].residual_norm
        flushed = pipe.flush().skip_reason if "residual" in pipe.plan.slots else None
        wire = [record.wire_bytes for record in records]
        results[name] = delivered, list(optimizer.total), norm, flushed, wire, shapes
    _, pipe, records = run(on_nodes(), PLANS["two shots"], batches(), poison=(3, 1))
    results["poisoned"] = [record.skip_reason for record in records]
    return results


def test_what_is_put_in_is_delivered_between_nodes_or_left():
    ranks = run_ranks(4, all_plans)
    for rank in ranks:
        assert rank["poisoned"] == [None, "nonfinite", None]
        for name in PLANS:
            delivered, flushed, norm, skipped, wire, shapes = rank[name]
            assert skipped is None
            assert all(nbytes > 0 for nbytes in wire)
            assert all(len(shape) == 1 for shape in shapes)
            for index, exact in enumerate(rank["exact"]):
                bound = 2e-6 * max(1.0, float(exact.abs().max()))
                assert torch.equal(delivered[index], ranks[0][name][0][index]), (name, index)
                if name in ("dense", "falls back"):
                    assert (delivered[index] - exact).abs().max() < bound, (name, index)
                if name in ("two shots", "sparse"):
                    assert norm > 0
                    assert (flushed[index] - exact).abs().max() < bound, (name, index)


def resume(folder):
    mine = batches(6)
    results = []
    for saves in (True, False):
        model = on_nodes()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        pipe = attached(model, PLANS["two shots"], optimizer)
        if not saves:
            pipe.load(folder)
        for index, window in enumerate(pipe.windows(mine if saves else mine[3:])):
            for inputs, labels in window:
                pipe.backward(F.cross_entropy(model(inputs), labels))
            pipe.step()
            if saves and index == 2:
                pipe.save(folder)
        results.append(pipe.state_dict()["slots"]["residual"])
    return results


def resume_elsewhere(folder):
    model = on_nodes()
    pipe = attached(model, PLANS["two shots"])
    try:
        pipe.load(folder)
    except tg.TightGradError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_residuals_of_shards_are_resumed_on_as_many_ranks_only(tmp_path):
    for straight, resumed in run_ranks(4, resume, str(tmp_path)):
        assert any(bool(left.any()) for left in straight.values())
        assert all(torch.equal(left, resumed[name]) for name, left in straight.items())
    for message in run_ranks(2, resume_elsewhere, str(tmp_path)):
        assert re.search(r"of 4 ranks.*Resume on 4, or call flush\(\)", message)


def refusals():
    model = on_nodes()
    cases = {
        r"powersgd needs matrices": tg.Compress(None, reducers.PowerSGD(2)),
        r"sums within nodes already": tg.Compress(codecs.IntBlock(4), reducers.Hierarchical(2)),
    }
    for words, compress in cases.items():
        with pytest.raises(tg.IncompatiblePlanError, match=words):
            attached(model, compress)
    for plan in (tg.Plan(clip=tg.clip.GlobalNorm(1.0)), tg.Plan(compress=PLANS["two shots"]), tg.Plan()):
        with pytest.raises(tg.UnsupportedError, match=r"mesh of 2 ranks of 4.*collective=.*mesh\.get_group"):
            tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    hsdp = small_model()
    fully_shard(hsdp, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "shard")))
    with pytest.raises(
        tg.UnsupportedError, match=r"two-dimensional mesh.*one-dimensional mesh of the ranks of this node"
    ):
        tg.attach(hsdp, torch.optim.SGD(hsdp.parameters(), lr=0.1), tg.Plan(compress=PLANS["two shots"]))
    return True


def test_what_cannot_run_between_nodes_is_refused():
    assert all(run_ranks(4, refusals))


def two_models():
    """Ranks 0, 1 have one model, ranks 2, 3 another: who is told of all ranks would add up gradients of both."""
    first = dist.get_rank() < 2
    model = on_nodes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 if first else 1.5)
    texts = []
    with pytest.raises(tg.UnsupportedError) as caught:
        attached(model, tg.Compress(codecs.Cast("float32")), collective=None)
    texts.append(str(caught.value))
    for compress in (tg.Compress(codecs.Cast("float32")), tg.Compress(codecs.IntBlock(8))):
        with pytest.raises(tg.RankMismatchError) as caught:
            attached(model, compress)
        texts.append(str(caught.value))
    alone = tg.collectives.TorchCollective(model[0].weight.device_mesh.get_group())
    norms = []
    for plan in (tg.Plan(clip=tg.clip.GlobalNorm(1e9)), tg.Plan(compress=tg.Compress(codecs.Cast("float32")))):
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan, collective=alone)
        for window in pipe.windows(batches(1)):
            for inputs, labels in window:
                pipe.backward(F.cross_entropy(model(inputs), labels))
            norms.append(pipe.step().grad_norm)
    return texts, norms


def test_two_models_on_two_groups_are_never_added():
    ranks = run_ranks(4, two_models)
    for texts, _ in ranks:
        assert re.search(
            r"mesh of 2 ranks of 4.*collective=tg\.collectives\.TorchCollective\(mesh\.get_group", texts[0]
        )
        assert all(re.search(r"differ from copy to copy, '0\.weight'.*mesh\.get_group", text) for text in texts[1:])
    norms = [norms for _, norms in ranks]
    assert norms[0] == norms[1]
    assert norms[2] == norms[3]
    assert norms[0][0] != pytest.approx(norms[2][0], rel=1e-3)
    assert all(dense == pytest.approx(sent, rel=1e-5) for dense, sent in norms)
