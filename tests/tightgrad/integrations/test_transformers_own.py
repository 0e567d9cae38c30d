"""A Trainer with a loss, callbacks, data or optimizers of the user's own: right, or told."""

import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

import tightgrad as tg
from support.accelerate_state import reset
from support.hf_models import IGNORED, InOrder, Rows, model_of, relative_error, trainer_of
from support.ranks import run_ranks
from support.tagging import launched

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")


def predicted(batch):
    return (batch["labels"][:, 1:] != IGNORED).sum()


def summed(outputs, labels):
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def by_items(outputs, labels, num_items_in_batch):
    return summed(outputs, labels) / num_items_in_batch


class ByItems(InOrder):
    """As transformers' guide writes it: there is always a number."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return summed(model(inputs["input_ids"]), inputs["labels"]) / num_items_in_batch


class ByItemsOrMean(InOrder):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        number = predicted({"labels": labels}) if num_items_in_batch is None else num_items_in_batch
        return summed(model(**inputs), labels) / number


class HandsOn(InOrder):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class LeavesOut(InOrder):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return model(**inputs).loss


OWN = {kind.__name__: {"kind": kind} for kind in (ByItems, ByItemsOrMean, HandsOn, LeavesOut)}
OWN["function"] = {"compute_loss_func": by_items}
SETTINGS = {  # also a batch without any label that counts, whose loss is 0/0 or 0/1
    "pairs": {},
    "singles": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
}


@pytest.mark.parametrize(
    ("name", "batches"), [*((name, "pairs") for name in OWN), ("ByItems", "singles"), ("function", "singles")]
)
def test_a_loss_of_ones_own_may_divide_by_the_number_of_items(name, batches, tmp_path):
    assert relative_error("llama", tmp_path, weight=predicted, settings=SETTINGS[batches], **OWN[name]) < 1e-5


def two_ranks(folder):
    with launched():
        try:
            settings = {"gradient_accumulation_steps": 2}
            return [
                relative_error("llama", folder, weight=predicted, settings=settings, **OWN[name])
                for name in ("ByItems", "function", "HandsOn")
            ]
        finally:
            reset()


def test_a_loss_that_divides_by_the_number_of_items_on_two_ranks(tmp_path):
    assert max(map(max, run_ranks(2, two_ranks, str(tmp_path)))) < 1e-5


def halve(grads):
    for grad in grads.values():
        grad.mul_(0.5)


class Sees(TrainerCallback):
    def __init__(self):
        self.norms = []

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))


@pytest.mark.parametrize("edit", [None, halve])
def test_a_callback_sees_the_gradients_after_the_step_and_an_edit_counts(edit, tmp_path):
    seen = Sees()
    trainer = trainer_of("llama", tmp_path, before_clip=edit, callbacks=[seen], settings={"max_steps": 2})
    start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert len(seen.norms) == 2
    assert seen.norms[1] == pytest.approx(trainer.loop.record.grad_norm, rel=1e-5)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    if edit is halve:
        return
    reset()
    halved = trainer_of("llama", tmp_path, before_clip=halve)
    halved.train()
    moved = [after.detach() - before for after, before in zip(halved.model.parameters(), start, strict=True)]
    assert float(torch.nn.utils.get_total_norm(moved)) == pytest.approx(seen.norms[0] / 2, rel=1e-4)  # learning rate 1


class NoLength(IterableDataset):
    def __iter__(self):
        rows = Rows("llama")
        yield from (rows[index] for index in range(6))


def test_a_window_that_trainer_leaves_without_a_step_is_told_once(tmp_path):
    trainer = trainer_of("llama", tmp_path, kind=type("Plain", (InOrder,), {"_get_train_sampler": lambda *a: None}))
    trainer.train_dataset = NoLength()
    trainer.args.max_steps, trainer.args.gradient_accumulation_steps = 3, 2
    trainer.accelerator.gradient_accumulation_steps = 2
    with pytest.warns(tg.TightGradWarning, match="took no step after 1 batches.*the dataset has no length") as told:
        trainer.train()
    assert sum("took no step" in str(one.message) for one in told) == 1


def test_a_checkpoint_without_the_pipelines_part_is_told(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer_of("llama", tmp_path, settings=settings).train()
    shutil.rmtree(tmp_path / "checkpoint-1" / "tightgrad")
    reset()
    trainer = trainer_of("llama", tmp_path, settings=settings)
    with pytest.warns(tg.TightGradWarning, match="checkpoint-1 holds nothing of TightGrad"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.pipe.state.step == 1


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.1), (0.5, 0.1), (0.5, 0.0)])
def test_a_bound_that_is_changed_later_is_told_before_weights_move(before, after, tmp_path):
    trainer = trainer_of("llama", tmp_path, settings={"max_grad_norm": before})
    start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.args.max_grad_norm = after
    with pytest.raises(tg.UsageError, match=f"max_grad_norm was changed from {before} to {after}"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), start, strict=True))


def test_a_weight_that_looks_for_a_column_that_was_left_out_is_told(tmp_path):
    trainer = trainer_of("llama", tmp_path, weight=lambda batch: batch["num_tokens"].sum())
    with pytest.raises(tg.ConfigError, match=r"looks for 'num_tokens', but the batch has 'input_ids', 'labels'"):
        trainer.train()


def test_several_optimizers_are_refused(tmp_path):
    class Two(InOrder):
        def create_optimizer(self, model=None):
            self.optimizer = [torch.optim.SGD([one], lr=1.0) for one in self.model.parameters()]
            return self.optimizer

    trainer = trainer_of("llama", tmp_path, kind=Two, model=model_of("llama"))
    trainer.optimizer = None
    with pytest.raises(tg.UnsupportedError, match=r"create_optimizer gave a list.*tightgrad\.attach\(model, \["):
        trainer.train()


@pytest.mark.filterwarnings("ignore:the loss of one micro-batch was averaged:tightgrad.TightGradWarning")
@pytest.mark.parametrize(("weight", "gets"), [(predicted, True), (lambda batch: len(batch["labels"]), False)])
def test_a_number_of_items_is_given_only_where_the_weight_counts_labels(weight, gets, tmp_path):
    """A compute_loss that hands it on to the model would divide a sum over tokens by the number of samples."""
    given = []

    class Notes(InOrder):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            given.append(num_items_in_batch)
            return model(**inputs).loss

    trainer_of("llama", tmp_path, kind=Notes, weight=weight).train()
    assert len(given) > 2
    assert [one is not None for one in given] == [gets] * len(given)


@pytest.mark.filterwarnings("ignore:the loss of one micro-batch was averaged:tightgrad.TightGradWarning")
def test_a_weight_that_once_counted_labels_by_chance_gives_no_number_afterwards(tmp_path):
    given = []

    class Notes(InOrder):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if predicted(inputs):
                given.append((int(predicted(inputs)), num_items_in_batch))
            return model(**inputs).loss

    trainer_of(
        "llama", tmp_path, kind=Notes, weight=lambda batch: predicted(batch).clamp(max=17)
    ).train()  # counts 17, 1, 9, 18
    numbers = [None if items is None else int(items) for _, items in given]
    first_none = numbers.index(None)
    assert first_none > 0
    assert numbers == [count for count, _ in given[:first_none]] + [None] * (len(given) - first_none)
