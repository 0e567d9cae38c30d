"""Mistakes in a loop are told by their own cause, on every rank."""

import copy

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import small_model, wrap

PLAN = tg.Plan(accumulate=tg.Accumulate(2), clip=tg.clip.GlobalNorm(1.0))
BATCHES = [torch.ones(2, 20), torch.ones(3, 20)]


def window(pipe, model, inside=lambda index: None):
    for batches in pipe.windows(BATCHES):
        for index, batch in enumerate(batches):
            inside(index)
            pipe.backward(model(batch).square().mean())
        pipe.step()


def error_of(body):
    try:
        return body()
    except tg.TightGradError as error:
        return str(error)


def another_model():
    """The losses are those of a copy."""
    model = wrap(small_model(), "fsdp2")
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN)
    window(pipe, small_model())


def made_after_a_forward():
    model = wrap(small_model(), "fsdp2")
    model(BATCHES[0])
    tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN)


def no_forward():
    model = DistributedDataParallel(small_model())
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN)
    for batches in pipe.windows(BATCHES):
        list(batches)


def sharded_by_itself(folder):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of torch.jit.script in 2.13

    model = DistributedDataParallel(small_model())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW)
    pipe = tg.attach(model, optimizer, PLAN)
    window(pipe, model)
    tg.save(folder, model, optimizer, pipe)


def loaded_within(folder):
    """The window is dropped, and training goes on with the next one."""
    model = DistributedDataParallel(small_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, PLAN)
    window(pipe, model)
    tg.save(folder, model, optimizer, pipe)
    saved = copy.deepcopy(model.module)
    window(pipe, model)
    told = error_of(lambda: window(pipe, model, lambda index: index and tg.load(folder, model, optimizer, pipe)))
    assert all(map(torch.equal, model.parameters(), saved.parameters()))
    window(pipe, model)
    assert pipe.state.step == 2
    return told


def all_of_them(folder):
    bodies = [another_model, made_after_a_forward, no_forward]
    found = {body.__name__: error_of(body) for body in bodies}
    for body in (sharded_by_itself, loaded_within):
        found[body.__name__] = error_of(lambda body=body: body(f"{folder}/{body.__name__}"))
    dist.barrier()
    return found


WORDS = {
    "another_model": "no backward of this window went through the FSDP modules",
    "made_after_a_forward": "make the optimizer before its first forward",
    "no_forward": "give each batch its forward and pipe.backward(loss) within `for batch in window:`",
    "sharded_by_itself": "optimizer.consolidate_state_dict(to=0)",
    "loaded_within": "loading a state drop the window",
}


def test_each_is_told_by_its_own_cause(tmp_path):
    for found in run_ranks(2, all_of_them, str(tmp_path)):
        assert found.keys() == WORDS.keys()
        for name, words in WORDS.items():
            assert words in str(found[name]), (name, found[name])
