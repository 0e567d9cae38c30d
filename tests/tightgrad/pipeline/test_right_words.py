"""Loops that are left from before, or are not meant so: the error names what the loop does and what to write."""

import pytest
import torch
from torch import nn

import tightgrad as tg

BATCHES = [torch.randn(2, 6) for _ in range(4)]


def loss_of(model, batch):
    return model(batch).square().mean()


def left_backward(model, pipe, window):
    for batch in window:
        loss_of(model, batch).backward()
    pipe.step()


def left_last_backward(model, pipe, window):
    batches = iter(window)
    pipe.backward(loss_of(model, next(batches)))
    loss_of(model, next(batches)).backward()
    pipe.step()


def own_gradients(model, pipe, window):
    model.weight.grad = torch.ones_like(model.weight)
    pipe.step()


def no_backward(model, pipe, window):
    pipe.step()


def adversarial(model, pipe, window):
    for batch in window:
        noisy = batch.clone().requires_grad_()
        loss_of(model, noisy).backward()
        pipe.backward(loss_of(model, batch + noisy.grad.sign()))


def read_at_once(model, pipe, window):
    for batch in list(window):
        pipe.backward(loss_of(model, batch))


def read_ahead(model, pipe, window):
    batches = iter(window)
    batch = next(batches)
    for following in batches:
        pipe.backward(loss_of(model, batch))
        batch = following


def collected(model, pipe, window):
    for loss in [loss_of(model, batch) for batch in window]:
        pipe.backward(loss)


def summed(model, pipe, window):
    pipe.backward(sum(loss_of(model, batch) for batch in window))


def real_and_fake(model, pipe, window):
    for batch in window:
        pipe.backward(loss_of(model, batch))
        pipe.backward(loss_of(model, -batch))


def skipped_and_run(model, pipe, window):
    for batch in window:
        pipe.skip()
        pipe.backward(loss_of(model, batch))


def two_heads(model, pipe, window):
    for batch in window:
        pipe.backward(loss_of(model, batch), retain_graph=True)


def broken_off(model, pipe, window):
    for batch in window:
        pipe.backward(loss_of(model, batch))
        break
    next(pipe.windows(BATCHES))


def left_out_in_run(model, pipe, window):
    pipe.run(window, lambda batch: None)


READ_AHEAD = r"reads ahead \(list\(window\), a prefetcher, losses collected first\), let the loader given to"
CASES = {
    left_backward: r"\(new\).*Usually this is a backward other than pipe.backward\(\) \(write pipe.backward\(loss\)",
    left_last_backward: r"\(written in place\).*write pipe.backward\(loss\) for loss.backward\(\)",
    own_gradients: r"'weight' \(new\).*only the pipeline may write",
    no_backward: r"step\(\) came after 0 of the window's 2 micro-batches; loss.backward\(\) does not count",
    adversarial: "for gradients of inputs take torch.autograd.grad",
    read_at_once: READ_AHEAD,
    read_ahead: READ_AHEAD,
    collected: READ_AHEAD,
    summed: READ_AHEAD,
    real_and_fake: r"whether they share a graph or not \(such as those of real and fake samples\), and call it once",
    skipped_and_run: r"ran twice for micro-batch 0 of 2, or after its skip\(\)",
    two_heads: r"has no retain_graph.*Add losses that share a graph.*torch.autograd.grad\(loss, tensors",
    broken_off: "drop it after an error or a `break`. A pipeline has one window at a time",
    left_out_in_run: r"leave a micro-batch out, call pipe.skip\(\) in a loop of your own, or give it the weight 0",
}


def attached(plan=None, **settings):
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, tg.attach(model, optimizer, plan or tg.Plan(accumulate=tg.Accumulate(2)), **settings)


@pytest.mark.parametrize(("loop", "text"), CASES.items(), ids=lambda case: getattr(case, "__name__", ""))
@pytest.mark.parametrize("number", [1, 2], ids=["first window", "second"])
def test_the_loop_is_told(loop, text, number):
    model, pipe = attached()
    windows = pipe.windows(BATCHES)
    for _ in range(number - 1):
        for batch in next(windows):
            pipe.backward(loss_of(model, batch))
        pipe.step()
    before = model.weight.detach().clone()
    with pytest.raises(tg.UsageError, match=text):
        loop(model, pipe, next(windows))
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("plan", [tg.Plan(), tg.Plan(accumulate=tg.Accumulate(2))], ids=["empty plan", "accumulating"])
@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (None, "takes a loader, or any iterable of batches, and was given an object of type NoneType"),
        (7, "given an object of type int"),
        ("data/train", "given an object of type str"),
        (
            {"a": BATCHES, "b": BATCHES},
            r"given an object of type dict; its batches would be the keys.*zip\(\*loaders.values\(\)\)",
        ),
    ],
)
def test_what_is_no_loader_is_named(plan, loader, text):
    _, pipe = attached(plan)
    with pytest.raises(tg.ConfigError, match=text):
        next(pipe.windows(loader))


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 257), (torch.bfloat16, 300), (torch.float16, 2049)])
def test_a_weight_that_was_rounded_is_refused(dtype, count):
    _, pipe = attached(weight=lambda batch: torch.ones(count).to(dtype).sum())
    with pytest.raises(tg.ConfigError, match=f"{dtype}, which rounds whole numbers of this size; count in float32"):
        next(pipe.windows(BATCHES))


@pytest.mark.parametrize("weight", [torch.ones(255, dtype=torch.bfloat16).sum(), torch.tensor(1e6), torch.tensor(0.3)])
def test_other_weights_are_taken(weight):
    _, pipe = attached(weight=lambda batch: weight)
    assert next(pipe.windows(BATCHES)).weights[0]["loss"] == float(weight)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (
            (0, (BATCHES[0], BATCHES[0])),
            r"weight=lambda batch: len\(batch\[1\]\[0\]\)` if it is averaged",
        ),
        (None, "Let the loader leave out batches that are None"),
    ],
)
def test_a_batch_that_does_not_show_its_weight(batch, text):
    _, pipe = attached()
    with pytest.raises(tg.ConfigError, match=text):
        next(pipe.windows([batch]))


def test_a_parameter_of_no_module_is_told_where_it_belongs():
    model, temperature = nn.Linear(6, 3), nn.Parameter(torch.ones(()))
    with pytest.raises(tg.UsageError, match=r"to none, attach a module that has them all, such as nn.ModuleList"):
        tg.attach(model, torch.optim.SGD([*model.parameters(), temperature], lr=0.1), tg.Plan())


def head_alone(model):
    return model[1], [model[1].weight]


def one_optimizer_of_two(model):
    return model, [model[1].weight]


def a_parameter_of_the_loop(model):
    model.prompt = [nn.Parameter(torch.ones(6))]  # in no module
    return model, list(model.parameters())


SIZES = {"ragged": (2, 3, 1, 2), "a window cut short": (2, 2, 2)}


@pytest.mark.filterwarnings("ignore:.*not in the optimizer")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("split", [head_alone, one_optimizer_of_two, a_parameter_of_the_loop])
def test_gradients_of_what_no_pipeline_has_are_told_not_to_be_exact(split, sizes):
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False))
    attached_part, held = split(model)
    pipe = tg.attach(attached_part, torch.optim.SGD(held, lr=0.1), tg.Plan(accumulate=tg.Accumulate(2)))
    with pytest.warns(tg.TightGradWarning, match=r"on 1 parameter\(s\) that no pipeline steps") as told:  # noqa: PT031
        for window in pipe.windows(torch.randn(size, 6) for size in sizes):
            for batch in window:
                pipe.backward(loss_of(model, batch + getattr(model, "prompt", [0])[0]))
            pipe.step()
    assert sum("no pipeline steps" in str(one.message) for one in told) == 1


@pytest.mark.parametrize("fetch", ["auto", "window"])
@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (2, 3, 1, 2)], ids=["equal", "ragged"])
def test_gradients_that_are_exact_or_of_another_pipeline_are_not_spoken_of(fetch, sizes):
    trunk, head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)
    plan = tg.Plan(accumulate=tg.Accumulate(2, fetch=fetch))
    pipe = tg.attach(head, torch.optim.SGD(head.parameters(), lr=0.1), plan)
    other = tg.attach(trunk, torch.optim.SGD(trunk.parameters(), lr=0.1), tg.Plan()) if fetch == "auto" else None
    for window in pipe.windows(torch.randn(size, 6) for size in sizes):
        for batch in window:
            pipe.backward(head(trunk(batch)).square().mean())
        pipe.step()
    assert other is None or other.state.step == 0


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (lambda n: (torch.ones(n, 6), torch.ones(n, 3)), "len(batch[0])"),
        (lambda n: (3, torch.ones(n, 6)), "len(batch[1])"),
        (lambda n: {"k": 3, "x": torch.ones(n, 6)}, 'len(batch["x"])'),
    ],
)
def test_a_weight_that_counts_the_fields_of_a_batch_is_told_once(batch, count):
    _, pipe = attached(weight=len)
    with pytest.warns(tg.TightGradWarning, match="which is how many fields a batch has") as told:  # noqa: PT031
        for window in pipe.windows(batch(size) for size in (4, 2, 3, 5)):
            for _ in window:
                pipe.skip()
            pipe.step()
    assert len(told) == 1
    assert f"write weight=lambda batch: {count}, or" in str(told[0].message)


@pytest.mark.parametrize(
    ("weight", "batch"),
    [
        (len, lambda n: [torch.ones(6)] * n),  # a list of samples
        (lambda batch: len(batch[0]), lambda n: (torch.ones(n, 6), torch.ones(n, 3))),
        (lambda batch: 1, lambda n: (torch.ones(n, 6), torch.ones(n, 3))),
        (lambda batch: 1, lambda n: [torch.ones(n, 6)]),
        (len, lambda n: torch.ones(n, 6)),
        (len, lambda n: (torch.ones(4, 6), torch.ones(4, 3))),  # of one size, so that all count the same
    ],
)
def test_a_weight_that_counts_something_else_is_not_spoken_of(weight, batch):
    _, pipe = attached(weight=weight)
    for window in pipe.windows(batch(size) for size in (4, 2, 3, 5)):
        for _ in window:
            pipe.skip()
        pipe.step()
