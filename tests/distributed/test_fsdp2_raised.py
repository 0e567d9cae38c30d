"""FSDP2 after a forward or backward that has raised: the window is abandoned, and the next one is right."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, small_model, wrap

PLANS = {
    "last": tg.Plan(accumulate=tg.Accumulate(2, sync="last")),
    "every": tg.Plan(accumulate=tg.Accumulate(2, sync="every")),
    "compressed": tg.Plan(accumulate=tg.Accumulate(2), compress=tg.Compress(tg.codecs.Cast("float32"))),
}


def batch(rank, step, index):
    generator = torch.Generator().manual_seed(100 * rank + 10 * step + index)
    return torch.randn(3, 20, generator=generator), torch.randint(0, 3, (3,), generator=generator)


def stop(*args):
    raise KeyboardInterrupt


def broken(model, index, place):
    """Let the micro-batch raise: in its forward, or in the backward of the output, between layers or of the input."""
    inputs = batch(dist.get_rank(), 1, index)[0].requires_grad_()
    if place == "forward":
        with model[5].register_forward_pre_hook(stop):
            return model(inputs)
    if place == "between":
        with model[3].register_forward_hook(lambda module, args, output: output.register_hook(stop) and None):
            return model(inputs)
    outputs = model(inputs)
    (outputs if place == "output" else inputs).register_hook(stop)
    return outputs


def train(wrapper, plan, at, place):
    model, reference = wrap(small_model(), wrapper), small_model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt):  # in a loop by hand, before
        broken(model, 0, place).sum().backward()
    pipe = tg.attach(model, optimizer, PLANS[plan])
    stepping = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(3):
        try:
            for window in pipe.windows([batch(dist.get_rank(), step, index) for index in range(2)]):
                for index, (inputs, labels) in enumerate(window):
                    outputs = broken(model, index, place) if (step, index) == (1, at) else model(inputs)
                    pipe.backward(F.cross_entropy(outputs, labels))
                pipe.step()
        except KeyboardInterrupt:
            assert step == 1
            pipe.abandon()
            continue
        batches = [batch(rank, step, index) for rank in range(dist.get_world_size()) for index in range(2)]
        inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        stepping.zero_grad()
        F.cross_entropy(reference(inputs.double()), labels).backward()
        stepping.step()
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return pipe.state.step, max(float((full(one).double() - other).abs().max()) for one, other in pairs)


def train_all(wrapper, plan, places):
    return {(at, place): train(wrapper, plan, at, place) for at, place in places}


PLACES = [(0, "output"), (1, "output"), (1, "between"), (0, "input"), (1, "forward")]
MODELS = [*((2, "fsdp2", plan) for plan in PLANS), (4, "hsdp", "last")]
IN_TURN = [pytest.param(*model, PLACES[number % 2 :: 2], id=f"{number}") for number, model in enumerate(MODELS)]
OTHERS = [
    pytest.param(*model, PLACES[(number + 1) % 2 :: 2], id=f"{number} others", marks=pytest.mark.slow)
    for number, model in enumerate(MODELS)
]


@pytest.mark.parametrize(("ranks", "wrapper", "plan", "places"), [*IN_TURN, *OTHERS])
def test_the_next_window_is_that_of_the_big_batch(ranks, wrapper, plan, places):
    for found in run_ranks(ranks, train_all, wrapper, plan, places):
        assert len(found) == len(places) >= 2
        for case, (steps, far) in found.items():
            assert (steps, far < 1e-6) == (2, True), (case, far)
