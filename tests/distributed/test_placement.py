"""A model that more than data parallelism splits is refused by name on every rank, whatever is asked of it."""

import inspect
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks

CAST = tg.Compress(tg.codecs.Cast("float32"))
PLANS = (tg.Plan(), tg.Plan(clip=tg.clip.GlobalNorm(1.0)), tg.Plan(compress=CAST), tg.Plan(tg.Accumulate(2)))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, inputs):
        return self.norm(self.down(torch.relu(self.up(inputs))))


def mesh_of(*sizes, names=("dp", "tp")):
    return init_device_mesh("cpu", sizes, mesh_dim_names=names[-len(sizes) :])


def tensor_parallel(mesh):
    return parallelize_module(MLP(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def both():
    """One layer is split by both, another by fully_shard alone."""
    mesh = mesh_of(2, 2)
    return fully_shard(tensor_parallel(mesh["tp"]), mesh=mesh["dp"])


def both_but_the_first():
    """The first parameter found says nothing."""
    mesh = mesh_of(2, 2)
    model = nn.Sequential(nn.Linear(8, 8), tensor_parallel(mesh["tp"]))
    fully_shard(model[1], mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"])


def of_size(dp, tp):
    mesh = mesh_of(dp, tp)
    return fully_shard(tensor_parallel(mesh["tp"]), mesh=mesh["dp"])


def wide():
    """An axis of tensor parallelism of size 1 is none of ours either."""
    return of_size(4, 1)


def narrow():
    """And one of data parallelism is not to be guessed."""
    return of_size(1, 4)


def with_hsdp():
    """Three axes: two of fully_shard, one of tensor parallelism."""
    mesh = mesh_of(2, 1, 2, names=("node", "dp", "tp"))
    return fully_shard(tensor_parallel(mesh["tp"]), mesh=mesh["node", "dp"])


def frozen():
    """Only fully_shard splits what is trained, but each batch would be counted once for each tensor-parallel rank."""
    model = both()
    for layer in (model.up, model.down):
        layer.requires_grad_(False)
    return model


def left_out():
    """Tensor-parallel parameters that fully_shard was told to ignore."""
    mesh = mesh_of(2, 2)
    model = tensor_parallel(mesh["tp"])
    ignored = {*model.up.parameters(), *model.down.parameters()}
    return fully_shard(model, mesh=mesh["dp"], ignored_params=ignored)


FSDP2 = (both, both_but_the_first, wide, narrow, with_hsdp, frozen, left_out)


def only_tensor_parallel():
    return tensor_parallel(mesh_of(4))


def replicated():
    return distribute_module(MLP(), mesh_of(4))


def one_frozen_tensor():
    model = MLP()
    frozen = distribute_tensor(model.up.weight.detach(), mesh_of(4), [Replicate()])
    model.up.weight = nn.Parameter(frozen, requires_grad=False)
    return model


PLAIN = (only_tensor_parallel, replicated, one_frozen_tensor)


def in_ddp():
    """Its own way to compose with tensor parallelism hides DTensors between two forwards."""
    mesh = mesh_of(2, 2)
    return DistributedDataParallel(tensor_parallel(mesh["tp"]), device_mesh=mesh["dp"])


def refusal(call):
    with pytest.raises(tg.UnsupportedError) as caught:
        call()
    return str(caught.value)


def attach(model, plan, collective=None):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return tg.attach(model, optimizer, plan, collective=collective)


def refusals():
    found = {}
    world = tg.collectives.TorchCollective()
    for make in FSDP2:
        model = make()
        for collective in (None, world):
            texts = [refusal(lambda p=plan, m=model, c=collective: attach(m, p, c)) for plan in PLANS]
            found[make.__name__, collective is None] = texts
        found[make.__name__, "local"] = [refusal(lambda m=model: tg.attach_local(m, tg.LocalSGD(every=2)))]
    for make in PLAIN:
        model = make()
        found[make.__name__] = [refusal(lambda p=plan, m=model: attach(m, p, world)) for plan in PLANS]
        found[make.__name__] += [refusal(lambda m=model: tg.attach_local(m, tg.LocalSGD(every=2)))]
    ddp = in_ddp()
    found["ddp"] = [refusal(lambda p=plan: attach(ddp, p)) for plan in PLANS]
    found["ddp"] += [refusal(lambda: tg.ddp_comm_hook(ddp, CAST))]
    found["asked"] = [
        refusal(lambda: tg.ddp_comm_hook(ddp, CAST)),
        refusal(lambda: tg.attach_local(replicated(), LOCAL)),
    ]
    return found


LOCAL = tg.LocalSGD(every=2)
WORDS = r"^'[\w.]+' is a DTensor on a mesh with the axes .*tensor, expert or sequence parallelism.*tg\.clip_grad_norm_"


def test_tensor_parallel_parameters_are_refused_by_name_on_every_rank():
    ranks = run_ranks(4, refusals)
    for found in ranks:
        asked = found.pop("asked")
        assert "ddp_comm_hook handles data" in asked[0]
        assert "attach_local handles data" in asked[1]
        for key, texts in found.items():
            for text in texts:
                if key[-1] == "local":
                    assert "need the whole model on every rank" in text, key
                else:
                    assert re.search(WORDS, text), (key, text)
        assert "tp: 2 (Shard(dim=0))" in found["both", True][0]
        assert "own mesh is ('dp',)" in found["wide", True][0]


def with_ignored(kind):
    model = MLP()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if kind == "added later":
        fully_shard(model, mesh=mesh)
        model.late = nn.Linear(2, 2)
    else:
        fully_shard(model, mesh=mesh, ignored_params=set(model.norm.parameters()))
    if kind == "frozen":
        model.norm.requires_grad_(False)
    return model


def ignored():
    found = [
        refusal(lambda k=kind, p=plan: attach(with_ignored(k), p)) for kind in ("", "added later") for plan in PLANS
    ]
    model = with_ignored("frozen")
    pipe = attach(model, PLANS[1])
    for window in pipe.windows([torch.ones(3, 8)]):
        for batch in window:
            pipe.backward(model(batch)[:, :3].square().mean())
        norm = pipe.step().grad_norm
    return found, norm


def test_a_trained_parameter_that_fully_shard_ignores_is_refused_and_a_frozen_one_is_not():
    for found, norm in run_ranks(2, ignored):
        assert all(re.search(r"^'(norm|late)\.weight' can be trained but fully_shard does not", text) for text in found)
        assert norm > 0


def after_an_evaluation():
    """The root's parameters are unsharded after a forward without a backward."""
    model = fully_shard(MLP(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model(torch.ones(3, 8))
    pipe = tg.attach(model, optimizer, PLANS[1])
    window = next(pipe.windows([torch.randn(3, 8, generator=torch.Generator().manual_seed(1))]))
    for batch in window:
        pipe.backward(model(batch)[:, :3].square().mean())
    return pipe.step().grad_norm


def test_a_model_may_have_been_evaluated_before():
    assert all(norm > 0 for norm in run_ranks(2, after_an_evaluation))


def replicate_only():
    from torch.distributed._composable.replicate_with_fsdp import replicate

    return refusal(lambda: attach(replicate(MLP(), mesh=mesh_of(2)), PLANS[1]))


def test_torchs_replicate_is_refused():
    module = pytest.importorskip("torch.distributed._composable.replicate_with_fsdp")
    if "mesh" not in inspect.signature(module.replicate).parameters:
        pytest.skip("this torch (2.9) has another replicate(), which takes no mesh")
    for text in run_ranks(2, replicate_only):
        assert re.search(r"replicated by torch's replicate\(\).*use DistributedDataParallel", text)


def other_ranks():
    mesh = mesh_of(2, 2, names=("island", "shard"))
    across = tg.collectives.TorchCollective(mesh["island"].get_group())
    model = fully_shard(MLP(), mesh=mesh["shard"])
    ddp = DistributedDataParallel(MLP(), process_group=mesh["shard"].get_group())
    world = tg.collectives.TorchCollective()
    return (
        [refusal(lambda p=plan: attach(model, p, across)) for plan in PLANS],
        [
            refusal(lambda c=collective: attach(ddp, PLANS[1], c))
            for collective in (world, tg.collectives.SingleCollective())
        ],
    )


def test_a_collective_of_other_ranks_than_the_models_is_refused():
    for rank, (sharded, ddp) in enumerate(run_ranks(4, other_ranks)):
        mine = [2 * (rank // 2), 2 * (rank // 2) + 1]
        for text in sharded:
            assert f"is sharded over the ranks {mine}, but collective= has the ranks" in text
        assert all("averages over 2 ranks by itself" in text for text in ddp)
