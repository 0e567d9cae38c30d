"""What `accelerator.prepare` and its arguments take: what is not trained, what is missing, edits of gradients,
checkpoints of a plain Accelerator.
"""

import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_state import reset
from support.tagging import BATCH, STEPS, Tagger, Tokens, check_equal, num_tokens, raw_loop, weights_of
from tightgrad.integrations.accelerate import TightAccelerator

pytestmark = pytest.mark.filterwarnings("ignore:the loop over the training loader was left:tightgrad.TightGradWarning")


def alone(**settings):
    return TightAccelerator(plan=tg.Plan(), weight=num_tokens, gradient_accumulation_steps=STEPS, cpu=True, **settings)


def make(**settings):
    accelerator, model = alone(**settings), Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return accelerator, *accelerator.prepare(model, optimizer, DataLoader(Tokens(), batch_size=BATCH))


@pytest.mark.parametrize(
    "beside", [nn.CrossEntropyLoss(), Tagger().requires_grad_(False), None], ids=["loss", "frozen", "twice"]
)
def test_what_is_not_trained_may_be_prepared_too(beside):
    accelerator = alone()
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    _, model, optimizer, loader = accelerator.prepare(
        beside or model, model, optimizer, DataLoader(Tokens(), batch_size=BATCH)
    )
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    check_equal(weights_of(model), raw_loop(tg.Plan())[0])


@pytest.mark.parametrize(
    ("prepared", "missing"),
    [
        ("ml", "no optimizer has come"),
        ("ol", "no model with trainable parameters has come"),
        ("l", "no model with trainable parameters and no optimizer has come"),
        ("", "prepare_model, prepare_optimizer and prepare_data_loader do not attach the plan"),
    ],
)
def test_a_plan_that_would_never_act_is_named(prepared, missing):
    accelerator = alone()
    model = Tagger()
    parts = {
        "m": model,
        "o": torch.optim.SGD(model.parameters(), lr=0.5),
        "l": DataLoader(Tokens(), batch_size=BATCH),
    }
    for name in prepared:
        parts[name] = accelerator.prepare(parts[name])
    if not prepared:
        model, _ = accelerator.prepare_model(model), accelerator.prepare_optimizer(parts["o"])
    batch = next(iter(parts["l"]))
    with pytest.raises(tg.UsageError, match=missing):
        accelerator.backward(model(**batch)["loss"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batches_that_are_taken_ahead_are_told_how_to_count():
    accelerator, model, _, loader = make()
    batches = iter(loader)
    taken = [next(batches) for _ in range(STEPS)]
    with pytest.raises(tg.UsageError, match=r"0 of the 4 batches.*before the next batch is taken.*weight=lambda batch"):
        accelerator.backward(model(**taken[0])["loss"])


def test_an_edit_of_gradients_comes_before_the_clip():
    def halve(grads):
        for grad in grads.values():
            grad.mul_(0.5)

    weights, norms = {}, {}
    for edit in (None, halve):
        reset()
        accelerator, model, optimizer, loader = make(before_clip=edit)
        for batch in loader:
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.pipe.state.step:
                break
        weights[edit], norms[edit] = weights_of(model), accelerator.loop.record.grad_norm
    assert norms[halve] == pytest.approx(norms[None] / 2, rel=1e-6)
    start = weights_of(Tagger())
    for name, value in weights[halve].items():
        torch.testing.assert_close(value - start[name], (weights[None][name] - start[name]) / 2, rtol=1e-4, atol=1e-7)


def test_a_checkpoint_without_the_pipelines_part_is_told(tmp_path):
    make()[0].save_state(tmp_path)
    shutil.rmtree(tmp_path / "tightgrad")
    reset()
    accelerator = make()[0]
    with pytest.warns(tg.TightGradWarning, match="holds nothing of TightGrad.*its count of steps begin anew"):
        accelerator.load_state(tmp_path)
    reset()
    accelerator = alone()
    accelerator.load_state(tmp_path)  # before anything is prepared
    model = Tagger()
    with pytest.warns(tg.TightGradWarning, match="holds nothing of TightGrad"):
        accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
