"""What `backward` is given: the loss, or an error that says which line gives the loss."""

from collections import namedtuple

import pytest
import torch

import tightgrad as tg
from support.training import batches, linear, loss_of, train

Output = namedtuple("Output", ["logits", "loss"])
ONE = tg.Plan(accumulate=tg.Accumulate(micro_batches=2))
TWO = tg.Plan(accumulate=tg.Accumulate(micro_batches=2, losses=("main", "aux")))


def attached(plan):
    model = linear()
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


def given(plan, make):
    """Call backward with what `make` gives for a loss; the weights before and after, and the error."""
    model, pipe = attached(plan)
    before = model.weight.detach().clone()
    window = next(pipe.windows(batches(2)))
    batch = next(iter(window))
    with pytest.raises(tg.UsageError) as error:
        pipe.backward(make(loss_of(model, batch)))
    assert torch.equal(model.weight, before)
    pipe.abandon()
    if plan is not TWO:
        assert len(train(pipe, model, batches(2))) == (2 if plan.is_empty else 1)
    return str(error.value)


class WithLoss(dict):
    """As the outputs of transformers: a mapping whose entries are attributes too."""

    __getattr__ = dict.__getitem__


WRONG = [
    (lambda loss: (loss, torch.ones(3)), "a tuple of 2. Write pipe.backward(output[0])"),
    (lambda loss: (torch.ones(3), loss), "Write pipe.backward(output[1])"),
    (lambda loss: [loss, loss], "a list of 2. Write pipe.backward(output[0])"),
    (lambda loss: Output(torch.ones(3), loss), "Write pipe.backward(output.loss)"),
    (lambda loss: {"loss": loss, "logits": torch.ones(3)}, "Write pipe.backward(output['loss'])"),
    (lambda loss: WithLoss(loss=loss, logits=torch.ones(3)), "Write pipe.backward(output['loss'])"),
    (lambda loss: {"train_loss": loss}, "Write pipe.backward(output['train_loss'])"),
    (lambda loss: {"loss": loss.item()}, "loss is a float, not a tensor"),
    (lambda loss: loss.item(), "got a float. Write pipe.backward(loss) with the tensor"),
    (lambda loss: 0, "got an int"),
    (lambda loss: None, "got None. A model of transformers returns a loss only if it is given labels"),
    (lambda loss: loss.expand(4), "loss has the shape (4,); reduce it to a scalar"),
    (lambda loss: torch.empty(0), "loss has the shape (0,)"),
    (lambda loss: loss.detach(), "does not depend on any trainable parameter (it has no grad_fn)"),
    (lambda loss: torch.tensor(float(loss.detach())), "does not depend on any trainable parameter"),
    (lambda loss: torch.tensor(3), "does not depend on any trainable parameter"),
    (lambda loss: loss * 1j, "loss is complex"),
]


@pytest.mark.parametrize("plan", [tg.Plan(), ONE], ids=["empty", "accumulate"])
@pytest.mark.parametrize(("make", "words"), WRONG)
def test_what_is_not_the_loss_is_refused_with_what_to_write(plan, make, words):
    assert words in given(plan, make)


def test_several_losses_are_a_mapping():
    assert 'Write pipe.backward({"main": ..., "aux": ...})' in given(TWO, lambda loss: loss)
    assert "aux is a float" in given(TWO, lambda loss: {"main": loss, "aux": 0.1})
    assert "a tuple of 2" in given(TWO, lambda loss: (loss, loss))


def test_an_output_with_its_loss_alone_and_a_constant_part_are_taken():
    model, pipe = attached(ONE)
    for window in pipe.windows(batches(2)):
        for batch in window:
            pipe.backward(WithLoss(loss=loss_of(model, batch)))
        assert not pipe.step().skipped
    model, pipe = attached(TWO)
    for window in pipe.windows(batches(2)):
        for batch in window:
            pipe.backward({"main": loss_of(model, batch), "aux": torch.zeros(())})
        assert not pipe.step().skipped


def test_a_micro_batch_that_counts_nothing_needs_no_gradient():
    """The loss of a batch that is all padding is often a constant."""
    model = linear()
    pipe = tg.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), ONE, weight=lambda batch: float(batch.abs().sum() > 0)
    )
    for window in pipe.windows([torch.zeros(4, 3), *batches(1)]):
        for batch in window:
            pipe.backward(loss_of(model, batch) if batch.any() else torch.zeros(()))
        assert pipe.step().weight == 1.0


def test_what_run_is_given_is_checked_too():
    model, pipe = attached(tg.Plan(accumulate=tg.Accumulate(micro_batches=2, on_oom="split")))
    for loss, words in ((lambda batch: (loss_of(model, batch),), "a tuple of 1"), (lambda batch: None, "got None")):
        window = next(pipe.windows(batches(2)))
        with pytest.raises(tg.UsageError, match=words):
            pipe.run(window, loss)
        pipe.abandon()
