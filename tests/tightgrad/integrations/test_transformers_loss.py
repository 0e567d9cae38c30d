"""What a batch counts in `TightTrainer`: right for losses that are known, asked for where they are not."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer
from transformers.trainer_pt_utils import LabelSmoother

import tightgrad as tg
from support.accelerate_state import reset
from support.hf_models import IGNORED, InOrder, Rows, arguments, model_of, relative_error, trainer_of
from support.ranks import run_ranks
from support.tagging import launched
from tightgrad.accumulate.additive import Forward, compare_with_halves
from tightgrad.collectives.torch_dist import TorchCollective
from tightgrad.integrations.transformers_loss import count_answers

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")


KNOWN = ["llama", "gpt2", "masked", "tokens", "classes", "regression", "several", "answers", "t5", "ctc", "mixtral"]


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_loss_gives_the_big_batch(name, tmp_path):
    assert relative_error(name, tmp_path) < 1e-5


@pytest.mark.parametrize("name", ["llama", "tokens", "classes"])
def test_with_label_smoothing(name, tmp_path):
    def smoothed(model, columns):
        return LabelSmoother(0.2)(model(**columns), columns["labels"], shift_labels=name == "llama")

    error = relative_error(name, tmp_path, smoothed, settings={"label_smoothing_factor": 0.2})
    assert error < 1e-5


class OwnLoss(InOrder):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss


def squared(outputs, labels, num_items_in_batch=None):
    return outputs.logits.square().mean()


def custom_function(name):
    model = model_of(name)
    model.loss_function = lambda logits, labels, *args, **kwargs: logits.square().mean()
    return model


def patched(name):
    """As kernels do that fuse the head and the loss."""
    model = model_of(name)
    plain = type(model).forward
    model.forward = lambda *args, **kwargs: plain(model, *args, **kwargs)
    return model


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Embedding(20, 20)

    def forward(self, input_ids, labels):
        return {"loss": F.cross_entropy(self.layer(input_ids).flatten(0, 1), labels.flatten())}


UNKNOWN = {
    "mlm_nsp": ({}, r"BertForPreTraining computes it by itself \(loss_type None\).*MLM \+ NSP"),
    "ctc_sum": ({}, r'ctc_loss_reduction="sum"; set model.config.ctc_loss_reduction = "mean"'),
    "router": ({}, "adds the load balancing of its experts"),
    "bart": ({}, r"BartForCausalLM computes it by itself \(loss_type ForCausalLM\)"),
    "a module": ({"model": Plain()}, "Plain computes it by itself"),
    "own compute_loss": ({"kind": OwnLoss}, "OwnLoss has a compute_loss of its own"),
    "compute_loss_func": ({"compute_loss_func": squared}, "compute_loss_func computes it"),
    "a patched forward": ({"model": patched("llama")}, "LlamaForCausalLM computes it by itself"),
    "loss_function": ({"model": custom_function("llama")}, "LlamaForCausalLM computes it with <lambda>"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_loss_is_asked_for_before_training(case, tmp_path):
    kwargs, text = UNKNOWN[case]
    name = case if case in ("mlm_nsp", "ctc_sum", "router", "bart") else "llama"
    with pytest.raises(tg.ConfigError, match=rf"not known what the loss is averaged over: .*{text}"):
        trainer_of(name, tmp_path, **kwargs)


def all_labels(batch):
    return (batch["labels"] != IGNORED).sum()


@pytest.mark.parametrize(
    ("name", "weight", "reduction"),
    [("bart", all_labels, "mean"), ("ctc_sum", lambda batch: len(batch["labels"]), "sum")],
)
def test_a_weight_of_ones_own(name, weight, reduction, tmp_path):
    def scaled(model, columns):
        return model(**columns).loss / (8 if reduction == "sum" else 1)

    plan = tg.Plan(accumulate=tg.Accumulate(4, loss_reduction=reduction))
    assert relative_error(name, tmp_path, scaled, weight=weight, plan=plan) < 1e-5


class TwoMeans(type(model_of("masked"))):
    """Named like a model of transformers, in whose forward there is one term more."""

    def forward(self, input_ids, labels):
        output = super().forward(input_ids=input_ids, labels=labels)
        output.loss = output.loss + output.logits.square().mean()
        return output


def test_a_subclass_with_a_loss_of_its_own_is_asked(tmp_path):
    model = TwoMeans(model_of("masked").config)
    with pytest.raises(tg.ConfigError, match="TwoMeans computes it by itself"):
        trainer_of("masked", tmp_path, model=model)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_known_loss_that_is_not_what_it_seems_is_found_before_weights_move(precision, tmp_path):
    class Sneaky(type(model_of("llama"))):
        def forward(self, input_ids=None, labels=None, **kwargs):
            output = super().forward(input_ids=input_ids, **kwargs)
            loss = self.loss_function(output.logits, labels, self.vocab_size)
            output.loss = loss * labels[:, 1:].ne(IGNORED).sum()
            return output

    model = Sneaky(model_of("llama").config)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = trainer_of("llama", tmp_path, model=model, settings={"bf16": precision == "bf16"})
    with pytest.raises(tg.UsageError, match="the loss is not averaged over these items"):
        trainer.train()
    assert all(torch.equal(have, want) for have, want in zip(model.parameters(), before, strict=True))
    assert model.training


class OrderedTrainer(Trainer):
    _get_train_sampler = InOrder._get_train_sampler


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_loss_that_is_printed_is_a_mean_over_predicted_tokens(name, tmp_path):
    """docs/integrations/trainer.md: Trainer divides by all labels where it does not know that a model shifts them."""
    labels = Rows(name).columns["labels"]
    predicted, given = int(labels[:, 1:].ne(IGNORED).sum()), int(labels.ne(IGNORED).sum())
    assert (predicted, given) == (45, 53)
    printed = []
    for kind in (OrderedTrainer, InOrder):
        own = {"plan": tg.Plan()} if kind is InOrder else {}
        model = model_of(name)
        trainer = kind(model=model, args=arguments(tmp_path, learning_rate=0.0), train_dataset=Rows(name), **own)
        trainer.train()
        printed.append(next(row["loss"] for row in trainer.state.log_history if "loss" in row))
        reset()
    assert printed[1] == pytest.approx(float(model_of(name)(**Rows(name).columns).loss.detach()), rel=1e-5)
    assert printed[0] / printed[1] == pytest.approx(predicted / given if name == "gpt2" else 1.0, rel=1e-5)


def test_answers_that_are_cut_are_counted_or_refused():
    batch = {"input_ids": torch.zeros(3, 10), "start_positions": torch.tensor([1, 10, 3])}
    assert int(count_answers(batch | {"end_positions": torch.tensor([[2], [11], [9]])})) == 2
    with pytest.raises(tg.UsageError, match="2 begin and 1 end in the text of 10 tokens"):
        count_answers(batch | {"end_positions": torch.tensor([2, 11, 10])})


def test_a_batch_without_labels_is_named(tmp_path):
    trainer = trainer_of(
        "llama", tmp_path, data_collator=lambda rows: {"input_ids": Rows("llama").columns["input_ids"]}
    )
    with pytest.raises(tg.ConfigError, match="a batch has no tensor 'labels'"):
        trainer.train()


def two_ranks(folder):
    with launched():
        try:
            return relative_error("llama", folder, settings={"gradient_accumulation_steps": 2})
        finally:
            reset()


def test_on_two_ranks(tmp_path):
    assert max(run_ranks(2, two_ranks, str(tmp_path))) < 1e-5


def failing_ranks():
    def losses_of(batch):
        if torch.distributed.get_rank() == 1:
            raise tg.UsageError("not averaged over these items.")
        return {"loss": batch.mean()}

    forward = Forward(losses_of, lambda batch: {"loss": len(batch)}, torch.nn.Linear(1, 1), is_mean=True)
    with pytest.raises(tg.UsageError) as caught:
        compare_with_halves([torch.ones(4)], forward, TorchCollective())
    return str(caught.value)


def test_a_loss_that_one_rank_alone_finds_wrong_stops_all():
    found = run_ranks(2, failing_ranks)
    assert found == ["the check of the loss failed on rank 1, which says why.", "not averaged over these items."]
