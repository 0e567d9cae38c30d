"""A run that stops in mid-window and is taken up again is bit-identical to one that was not stopped."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import local, ragged_batches, small_model, wrap

# kind, sync, compressed, fetch, and after how many micro-batches to stop: in the middle of the second window of three
CASES = [
    (kind, sync, compressed, fetch, stop)
    for kind, sync, compressed in (
        ("plain", "auto", True),
        ("ddp", "auto", True),
        ("ddp hook", "auto", True),
        ("fsdp2", "auto", True),
        ("ddp", "last", False),
        ("ddp", "every", False),
        ("fsdp2", "last", False),
        ("fsdp2", "every", False),
    )
    for fetch, stop in (("window", 5), ("batch", 4), ("batch", 5))
]
# Every kind stops somewhere; the others are slow.
QUICK = [case for number, case in enumerate(CASES) if number % 3 == number // 3 % 3]
OTHERS = [case for case in CASES if case not in QUICK]


class Training:
    def __init__(self, kind, sync, compressed, fetch):
        reducer = tg.reducers.SparseTwoShot() if kind == "fsdp2" else None
        overlap = "backward" if kind == "ddp hook" else "auto"
        compressing = tg.Compress(tg.codecs.TopK(0.05), reducer, tg.ErrorFeedback(), overlap)
        compress = compressing if compressed else None
        accumulate = tg.Accumulate(3, sync=sync, fetch=fetch)
        plan = tg.Plan(accumulate=accumulate, compress=compress, clip=tg.clip.GlobalNorm(0.3))
        self.model = wrap(small_model(batch_norm=kind != "fsdp2"), kind.removesuffix(" hook"))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        collective = tg.collectives.TorchCollective() if kind == "plain" else None
        self.pipe = tg.attach(self.model, self.optimizer, plan, collective=collective)

    def run(self, batches, stop_after=None):
        done = 0
        for window in self.pipe.windows(batches):
            for inputs, labels in window:
                self.pipe.backward(F.cross_entropy(self.model(inputs), labels))
                done += 1
                if done == stop_after:
                    return
            self.pipe.step()

    def tensors(self):
        return {name: local(tensor) for name, tensor in self.model.state_dict().items()}


def resume_all(cases, folder):
    results = {}
    batches = ragged_batches(dist.get_rank())
    for *case, stop in cases:
        path = f"{folder}/{'-'.join(map(str, case))}-{stop}"
        straight = Training(*case)
        straight.run(batches)
        stopped = Training(*case)
        stopped.run(batches, stop)
        stopped.pipe.save(path)
        weights, momentum = stopped.tensors(), copy.copy(stopped.optimizer.state_dict())
        resumed = Training(*case)
        for name, tensor in resumed.model.state_dict().items():
            (tensor.to_local() if hasattr(tensor, "to_local") else tensor).copy_(weights[name])
        resumed.optimizer.load_state_dict(momentum)
        first_batch = resumed.pipe.load(path)
        resumed.run(batches[first_batch:])
        results[*case, stop] = (straight.tensors(), resumed.tensors(), first_batch)
    return results


@pytest.mark.parametrize("cases", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["quick", "others"])
def test_stopped_in_mid_window_and_resumed_is_bit_identical(tmp_path, cases):
    for rank in run_ranks(2, resume_all, cases, str(tmp_path)):
        assert len(rank) == len(cases)
        for case, (straight, resumed, first_batch) in rank.items():
            assert first_batch == 3, case
            assert straight.keys() == resumed.keys()
            for name, tensor in straight.items():
                assert torch.equal(tensor, resumed[name]), (case, name)


def residual_plan():
    return tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.05), feedback=tg.ErrorFeedback()))


def save_residuals(folder):
    model = small_model()
    pipe = tg.attach(wrap(model, "ddp"), torch.optim.SGD(model.parameters(), lr=0.1), residual_plan())
    for window in pipe.windows(ragged_batches(dist.get_rank())[:4]):
        for inputs, labels in window:
            pipe.backward(F.cross_entropy(pipe.adapter.model(inputs), labels))
        pipe.step()
    pipe.save(folder)
    return pipe.state_dict()["slots"]["residual"]


def load_residuals(source, target):
    model = small_model()
    pipe = tg.attach(wrap(model, "ddp"), torch.optim.SGD(model.parameters(), lr=0.1), residual_plan())
    pipe.load(source)
    pipe.save(target)
    return pipe.state_dict()["slots"].get("residual", {})


def test_residuals_keep_their_sum_on_another_number_of_ranks(tmp_path):
    two, three, again = (str(tmp_path / name) for name in ("two", "three", "again"))
    saved = run_ranks(2, save_residuals, two)
    on_three = run_ranks(3, load_residuals, two, three)
    on_two = run_ranks(2, load_residuals, three, again)
    for name in saved[0]:
        total = sum(rank[name] for rank in saved)
        assert total.abs().max() > 0
        assert torch.equal(sum(rank[name] for rank in on_three if name in rank), total)
        assert torch.equal(sum(rank[name] for rank in on_two if name in rank), total)
