"""fetch="auto" on one rank, in a wrapper: as a loop by hand where the wrapper need not know the last micro-batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import small_model, wrap

HOOK = tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback(), overlap="backward")
NEVER = tg.Compress(tg.codecs.IntBlock(8), overlap="none")
K, SIZES = 4, (4, 4, 4, 4, 4, 4)  # the second window has two of four
CASES = {
    "ddp": ("ddp", {}, 1),
    "ddp, every": ("ddp", {"sync": "every"}, 1),
    "ddp, summed by the pipeline": ("ddp", {"compress": NEVER}, 1),
    "ddp, during backward": ("ddp", {"compress": HOOK}, K),
    "fsdp2": ("fsdp2", {}, K),
    "fsdp2, every": ("fsdp2", {"sync": "every"}, K),
}


class Noisy(nn.Module):
    """Draws as dropout does, and counts its forwards."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.forwards = inner, 0

    def forward(self, inputs):
        self.forwards += 1
        return self.inner(inputs) * torch.rand(())


def drawn(seed):
    """As nanoGPT's get_batch, from the generator that the forward uses as well."""
    torch.manual_seed(seed)
    for size in SIZES:
        yield torch.randn(size, 20), torch.randint(0, 3, (size,))


def one_buffer():
    inputs, labels = torch.zeros(4, 20), torch.zeros(4, dtype=torch.int64)
    for size in SIZES:
        inputs.copy_(torch.randn(size, 20))
        labels.copy_(torch.randint(0, 3, (size,)))
        yield inputs, labels


def made(kind, settings):
    model = wrap(small_model(), kind)
    noisy = Noisy(model)
    settings = dict(settings)
    accumulate = tg.Accumulate(K, sync=settings.pop("sync", "auto"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return noisy, tg.attach(model, optimizer, tg.Plan(accumulate=accumulate, **settings))


def trained(kind, settings, loader):
    model, pipe = made(kind, settings)
    taken, first = 0, None

    def counted():
        nonlocal taken
        for batch in loader:
            taken += 1
            yield batch

    records = []
    for window in pipe.windows(counted()):
        for inputs, labels in window:
            first = first or taken
            pipe.backward(nn.functional.cross_entropy(model(inputs), labels))
        records.append(pipe.step())
    weights = [p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]
    return first, [record.micro_batches for record in records], model.forwards, weights


def by_hand():
    model = Noisy(small_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for position, (inputs, labels) in enumerate(drawn(3)):
        size = K if position < K else len(SIZES) - K
        (nn.functional.cross_entropy(model(inputs), labels) / size).backward()
        if position in (K - 1, len(SIZES) - 1):
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def on_one_rank(case):
    kind, settings, _ = CASES[case]
    assert dist.get_world_size() == 1
    return trained(kind, settings, drawn(3)), by_hand()


@pytest.mark.parametrize("case", CASES)
def test_a_wrapper_on_one_rank_runs_what_the_loader_gives(case):
    _, settings, expected = CASES[case]
    (((first, micro_batches, forwards, weights), others),) = run_ranks(1, on_one_rank, case)
    assert first == expected
    assert micro_batches == [4, 2], "no micro-batch is repeated for ranks that there are not"
    assert forwards == len(SIZES)
    if expected == 1 and "compress" not in settings:
        for weight, other in zip(weights, others, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-7)


def reusing(case):
    kind, settings, _ = CASES[case]
    torch.manual_seed(4)
    try:
        return trained(kind, settings, one_buffer())[1]
    except tg.UsageError as error:
        return str(error)


@pytest.mark.parametrize("case", CASES)
def test_a_loader_that_reuses_its_buffer_is_right_or_told(case):
    (found,) = run_ranks(1, reusing, case)
    if CASES[case][2] == 1:
        assert found == [4, 2]
    else:
        assert 'Accumulate(fetch="batch")' in found
