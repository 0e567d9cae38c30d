"""One call that saves and one that resumes, under DDP and FSDP2: to the bit, and from one wrapper to the other."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import tightgrad as tg
from support.ranks import run_ranks
from support.resuming import Run, compared, differences
from support.wrapping import full, ragged_batches, wrap

# wrapper, how it reduces, compressed, optimizers, and after how many micro-batches of windows of three to stop
CASES = [
    ("ddp", "auto", True, "adamw", 4),
    ("ddp", "auto", True, "two", 3),
    ("ddp", "last", False, "two", 5),
    ("fsdp2", "auto", True, "two", 5),
    ("fsdp2", "last", False, "adamw", 4),
    ("fsdp2", "every", False, "adamw", 5),
    ("fsdp2", "last", False, "two", 3),
    ("plain", "auto", True, "adamw", 4),
]
# Each wrapper, each way to reduce, compressed and not, both kinds of optimizers and each place to stop.
QUICK = [CASES[index] for index in (1, 2, 3, 5, 7)]


def net(*, batch_norm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(33) if batch_norm else nn.Identity()
        return nn.Sequential(nn.Linear(20, 33), norm, nn.Dropout(0.3), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 3))


def made(wrapper, sync="auto", compressed=False, optimizers="adamw", *, batch_norm=False):
    model = wrap(net(batch_norm=batch_norm), wrapper)
    reducer = tg.reducers.SparseTwoShot() if wrapper == "fsdp2" else None
    compress = tg.Compress(tg.codecs.TopK(0.05), reducer, tg.ErrorFeedback()) if compressed else None
    plan = tg.Plan(tg.Accumulate(3, sync=sync), compress, tg.clip.GlobalNorm(0.3))
    if optimizers == "adamw":
        stepped = [torch.optim.AdamW(model.parameters(), lr=0.01)]
    else:
        matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
        others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
        stepped = [torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(others, lr=0.01)]
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 2, 0.5) for one in stepped]
    collective = tg.collectives.TorchCollective() if wrapper == "plain" else None
    pipe = tg.attach(
        model, stepped, plan, scheduler=schedulers[0] if len(schedulers) == 1 else schedulers, collective=collective
    )
    return Run(model, stepped, pipe, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))


def seeded(*settings, **more):
    run = made(*settings, **more)
    torch.manual_seed(100 + dist.get_rank())
    return run


def resume_all(cases, folder):
    found = {}
    batches = ragged_batches(dist.get_rank())
    for *case, stop in cases:
        path = f"{folder}/{'-'.join(map(str, case))}-{stop}"
        settings = {"batch_norm": case[0] != "fsdp2"}
        straight = seeded(*case, **settings)
        records = straight.train(batches)
        stopped = seeded(*case, **settings)
        stopped.train(batches, stop)
        stopped.save(path)
        resumed = made(*case, **settings)
        first = resumed.load(path)
        later = resumed.train(batches[first:])
        same = [record.pop("wire_bytes") is not None for record in compared(later)]  # a wrapper counts its own windows
        expected, got = compared(records)[-len(later) :], compared(later)
        for record in (*expected, *got):
            record.pop("wire_bytes")
        found[*case, stop] = (first, differences(straight.state(), resumed.state()), expected == got and all(same))
    return found


@pytest.mark.filterwarnings("ignore:BatchNorm")
@pytest.mark.parametrize("cases", [QUICK, pytest.param(CASES, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_a_run_goes_on_to_the_bit(tmp_path, cases):
    for rank in run_ranks(2, resume_all, cases, str(tmp_path)):
        assert len(rank) == len(cases)
        for case, outcome in rank.items():
            assert outcome == (3, [], True), (case, outcome)


def whole(run):
    """Model and optimizer state by names that all wrappers share, unsharded."""
    tensors = {name.removeprefix("module."): full(value) for name, value in run.model.state_dict().items()}
    names = {id(parameter): name.removeprefix("module.") for name, parameter in run.model.named_parameters()}
    for optimizer in run.optimizers:
        for parameter, state in optimizer.state.items():
            tensors |= {f"{names[id(parameter)]}/{key}": full(value) for key, value in state.items()}
    return tensors


def save_some(folder, wrapper):
    run = seeded(wrapper)
    run.train(ragged_batches(dist.get_rank())[:6], 6)
    run.save(folder)
    return whole(run)


def load_some(folder, wrapper):
    run = made(wrapper)
    first = run.load(folder)
    found = whole(run)
    run.train([(torch.ones(2, 20), torch.zeros(2, dtype=torch.long))] * 3)
    return first, found, run.pipe.state.step


@pytest.mark.parametrize(("saving", "others"), [
    ("fsdp2", [(3, "fsdp2"), (2, "ddp"), (1, "plain")]),
    ("ddp", [(3, "fsdp2"), (1, "ddp")]),
])  # fmt: skip
def test_another_wrapper_and_another_number_of_ranks(tmp_path, saving, others):
    saved = run_ranks(2, save_some, str(tmp_path), saving)[0]
    assert len(saved) == 6 + 6 * 3
    for ranks, wrapper in others:
        for first, found, step in run_ranks(ranks, load_some, str(tmp_path), wrapper):
            assert (first, step) == (6, 3)
            assert saved.keys() == found.keys()
            assert all(torch.equal(saved[name], value) for name, value in found.items()), (ranks, wrapper)


def on_mesh(ranks):
    """Parts of one shape on every rank; which rank has which is the mesh's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 8)
    names = ("replicate", "shard")[2 - torch.tensor(ranks).dim() :]
    mesh = DeviceMesh("cpu", torch.tensor(ranks), mesh_dim_names=names)
    optimizer = torch.optim.AdamW(fully_shard(model, mesh=mesh).parameters(), lr=0.01)
    return Run(model, [optimizer], tg.attach(model, optimizer, tg.Plan(tg.Accumulate(2))), lambda m, b: m(b).sum())


def save_on(folder, ranks):
    run = on_mesh(ranks)
    run.train([torch.ones(2, 6)] * 4, 4)
    run.save(folder)
    return whole(run)


def load_on(folder, ranks):
    run = on_mesh(ranks)
    run.load(folder)
    return whole(run)


@pytest.mark.parametrize(("saving", "loading"), [
    ([[0, 1], [2, 3]], [0, 1]),
    ([0, 1], [[0, 1], [2, 3]]),
    ([[0, 1], [2, 3]], [[0, 2], [1, 3]]),
])  # fmt: skip
def test_another_rank_has_a_part_of_the_same_shape(tmp_path, saving, loading):
    saved = run_ranks(torch.tensor(saving).numel(), save_on, str(tmp_path), saving)[0]
    for found in run_ranks(torch.tensor(loading).numel(), load_on, str(tmp_path), loading):
        assert saved.keys() == found.keys()
        assert all(torch.equal(saved[name], value) for name, value in found.items())


def refuse(folder, damage):
    run = made("fsdp2")
    before = run.state()
    if damage == "another model":
        run = made("fsdp2", batch_norm=True)
        before = run.state()
    with pytest.raises(tg.TightGradError) as raised:
        run.load(folder)
    assert not differences(before, run.state())
    return f"{type(raised.value).__name__}: {raised.value}"


def test_what_one_rank_cannot_read_is_refused_by_all(tmp_path):
    run_ranks(2, save_some, str(tmp_path), "fsdp2")
    for words in run_ranks(2, refuse, str(tmp_path), "another model"):
        assert "StateMismatchError: the model is not the one that was saved: '1.weight' is there" in words
    (file,) = Path(tmp_path).glob("step-*/training-00001*")
    file.write_bytes(file.read_bytes()[:-1])
    first, second = run_ranks(2, refuse, str(tmp_path), "a file")
    assert "rank 1 cannot load" in first
    assert "training-00001-of-00002.pt is damaged" in second


def shards_are_damaged(folder):
    run = made("fsdp2")
    before = run.state()
    with pytest.raises(tg.CheckpointError, match=r"damaged|cannot be read|cannot load"):
        run.load(folder)
    assert not differences(before, run.state())


def test_a_changed_bit_in_a_shard_is_found(tmp_path):
    run_ranks(2, save_some, str(tmp_path), "fsdp2")
    (file,) = Path(tmp_path).glob("step-*/__1_0.distcp")
    content = bytearray(file.read_bytes())
    for place in range(0, len(content), 64):
        content[place] ^= 1
    file.write_bytes(bytes(content))
    run_ranks(2, shards_are_damaged, str(tmp_path))
