"""FSDP2 with bfloat16 parameters and a float32 reduction: micro-batches of a window may use different parameters.

torch itself gives up there (pytorch issue 196996): what was accumulated is float32, what is fresh or unused bfloat16.
"""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import tightgrad as tg
from support.ranks import run_ranks
from support.torch215 import only_reads
from support.wrapping import full, local, ragged_batches, small_model, wrap

# For each rank, the layers that each micro-batch uses: all units run on every rank, some parameters do not.
USES = {
    "first used in the last": ((("a",), ("a", "b")), (("a",), ("a", "b"))),
    "never used": ((("a",), ("a",)), (("a",), ("a",))),
    "first used in the last by one rank": ((("a",), ("a", "b")), (("a",), ("a",))),
    "used first only": ((("a", "b"), ("a",)), (("a", "b"), ("a",))),
    "each once": ((("a",), ("b",)), (("b",), ("a",))),
    "three": ((("a",), ("a", "b"), ("c",)), (("b",), ("b",), ("c", "a"))),
}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b, self.c = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, inputs, uses):
        for name in uses:
            inputs = getattr(self, name)(inputs)
        return inputs


def batches(rank, uses):
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(4, 8, generator=generator).bfloat16(), use) for use in uses]


def delivered(sync, uses, compress=None, kind="fsdp2"):
    """What the optimizer is given."""
    model = Layers().bfloat16()
    ranks = dist.get_world_size()
    mesh = init_device_mesh(
        "cpu",
        (ranks,) if kind == "fsdp2" else (2, ranks // 2),
        mesh_dim_names=("r", "s")[-1:] if kind == "fsdp2" else ("r", "s"),
    )
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = {}
    optimizer.register_step_pre_hook(
        lambda *_: found.update({n: full(p.grad).double() for n, p in model.named_parameters() if p.grad is not None})
    )
    mine = uses[dist.get_rank() % 2]
    plan = tg.Plan(tg.Accumulate(len(mine), sync=sync), compress, clip=tg.clip.GlobalNorm(1e9))
    pipe = tg.attach(model, optimizer, plan)
    for window in pipe.windows(batches(dist.get_rank(), mine)):
        for inputs, use in window:
            pipe.backward(model(inputs, use).float().square().mean())
        pipe.step()
    return found


def all_uses(kind):
    int8 = tg.Compress(tg.codecs.Cast("float32"))
    found = {}
    for name, uses in USES.items():
        found[name] = delivered("last", uses, kind=kind), delivered("every", uses, kind=kind)
        if kind == "fsdp2":
            found[name] += (delivered("last", uses, int8),)
    return found


def expected(uses, ranks):
    """Of one big batch on one process; each micro-batch's gradient is bfloat16, as autograd of bfloat16 gives it."""
    sums = {}
    for rank in range(ranks):
        for inputs, use in batches(rank, uses[rank % 2]):
            model = Layers().bfloat16()
            total = sum(len(u) for u in (uses[r % 2] for r in range(ranks)))
            (model(inputs, use).float().square().mean() / total).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    sums[name] = sums.get(name, 0) + parameter.grad.double()
    return sums


@pytest.mark.parametrize(("kind", "ranks"), [("fsdp2", 2), pytest.param("hsdp", 4, marks=pytest.mark.slow)])
def test_gradients_of_fresh_and_unused_parameters_are_right(kind, ranks):
    for found in run_ranks(ranks, all_uses, kind):
        for name, uses in USES.items():
            exact = expected(uses, ranks)
            for grads in found[name]:
                assert grads.keys() == exact.keys(), name
                for parameter, grad in grads.items():
                    assert (grad - exact[parameter]).norm() < 0.01 * exact[parameter].norm(), (name, parameter)


def weights(*, resumes, sync="last"):
    """After windows of three micro-batches, the second of which is perhaps resumed in its middle."""
    found = ragged_batches(dist.get_rank())[:5] * 2
    model, pipe = made(sync)
    done = itertools.count(1)
    for window in pipe.windows(found):
        for inputs, labels in window:
            pipe.backward(nn.functional.cross_entropy(model(inputs), labels))
            count = next(done)
            assert pipe.adapter.holds_back is (sync == "last" and count % 3 > 0 and count < 10)
            if count == 5 and resumes:
                state, held = pipe.state_dict(), [local(tensor) for tensor in model.state_dict().values()]
                return finish(state, held, found, sync)
        pipe.step()
    return [local(p) for p in model.parameters()]


def made(sync):
    model = wrap(small_model(), "fsdp2")
    plan = tg.Plan(tg.Accumulate(3, sync=sync), clip=tg.clip.GlobalNorm(0.3))
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


def finish(state, held, found, sync):
    model, pipe = made(sync)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), held, strict=True):
            parameter.to_local().copy_(value)
    pipe.load_state_dict(state)
    again = pipe.state_dict()["num_consumed"]
    for window in pipe.windows(found[again:]):
        for inputs, labels in window:
            pipe.backward(nn.functional.cross_entropy(model(inputs), labels))
            pipe.state_dict()  # looks at gradients that may still wait
        pipe.step()
    return [local(p) for p in model.parameters()]


def on_torch215():
    straight = weights(resumes=False)
    with only_reads():
        return straight, weights(resumes=False), weights(resumes=True), weights(resumes=True, sync="every")


def test_a_torch_whose_accumulated_gradient_is_a_property_gives_the_same_bits():
    for straight, patched, resumed, every in run_ranks(2, on_torch215):
        assert all(map(torch.equal, straight, patched))
        assert all(map(torch.equal, straight, resumed))
        assert all(
            torch.allclose(left, right, rtol=1e-5, atol=1e-6) for left, right in zip(straight, every, strict=True)
        )
