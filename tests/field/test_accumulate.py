"""A1, A2, A3, A7: accumulation on one device."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg
from field.gradients import (
    FEATURES,
    Recorder,
    cosine,
    exact_gradient,
    flat_grad,
    gain,
    linear_model,
    loader_of,
    mean_square,
    regression_batches,
    relative_error,
)

MICRO_BATCHES = 4
PARTIAL = 3  # micro-batches in the last window


def with_tightgrad(model, batches, plan, loss_of=mean_square, weight=None):
    """Each window's gradient and record."""
    optimizer = Recorder(model)
    pipe = tg.attach(model, optimizer, plan, weight=weight)
    records = [pipe.run(window, lambda batch: loss_of(model, batch)) for window in pipe.windows(batches)]
    return optimizer.gradients, records


@pytest.fixture
def accelerator():
    """A fresh one on the CPU; Accelerate's state is global."""
    pytest.importorskip("accelerate")
    from accelerate import Accelerator

    from support.accelerate_state import reset

    yield Accelerator(gradient_accumulation_steps=MICRO_BATCHES, cpu=True)
    reset()


def with_accelerate(accelerator, batches):
    model = linear_model()
    recorder = Recorder(model)
    model, optimizer, loader = accelerator.prepare(model, recorder, loader_of(batches))
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(mean_square(model, batch))
            optimizer.step()
            optimizer.zero_grad()
    return recorder.gradients


def with_lightning(batches):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.gradients = linear_model(), []

        def training_step(self, batch, index):
            return mean_square(self.model, batch)

        def on_before_optimizer_step(self, optimizer):
            self.gradients.append(flat_grad(self.model))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=MICRO_BATCHES,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        barebones=True,
    )
    trainer.fit(module, loader_of(batches))
    return module.gradients


def check_partial_window(field_row, peer, gradients):
    """A1: the last window has 3 of 4 micro-batches; the peer divides by 4 all the same."""
    batches = regression_batches(MICRO_BATCHES + PARTIAL)
    windows = batches[:MICRO_BATCHES], batches[MICRO_BATCHES:]
    exact = [exact_gradient(linear_model(), window) for window in windows]
    ours, _ = with_tightgrad(linear_model(), batches, tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES)))
    assert len(gradients) == len(ours) == len(exact) == 2
    assert all(relative_error(have, want) < 1e-6 for have, want in zip(ours, exact, strict=True))
    assert relative_error(gradients[0], exact[0]) < 1e-6, "the peer's full window is right"
    peer_gain, our_gain = gain(gradients[1], exact[1]), gain(ours[1], exact[1])
    field_row(
        "A1 partial last window, 3 of 4",
        peer,
        f"{peer_gain:.4f}x the gradient",
        f"{our_gain:.4f}x",
        peer_is_wrong=abs(peer_gain - PARTIAL / MICRO_BATCHES) < 1e-4,
    )


def test_a1_accelerate(field_row, accelerator):
    gradients = with_accelerate(accelerator, regression_batches(MICRO_BATCHES + PARTIAL))
    check_partial_window(field_row, "accelerate", gradients)


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The number of training batches:UserWarning",
)
def test_a1_lightning(field_row):
    gradients = with_lightning(regression_batches(MICRO_BATCHES + PARTIAL))
    check_partial_window(field_row, "lightning", gradients)


VOCABULARY = 11
LENGTH = 16
TOKENS = (16, 2, 16, 1)  # that count, in each micro-batch


class Tagger(nn.Module):
    """Its loss is the mean over its own micro-batch's tokens: it takes no `num_items_in_batch`."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(VOCABULARY, FEATURES)
            self.head = nn.Linear(FEATURES, VOCABULARY)

    def forward(self, input_ids, labels):
        logits = self.head(self.embed(input_ids))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def token_batches():
    generator = torch.Generator().manual_seed(1)
    batches = []
    for tokens in TOKENS:
        input_ids, labels = (torch.randint(0, VOCABULARY, (1, LENGTH), generator=generator) for _ in range(2))
        labels[:, tokens:] = -100
        batches.append((input_ids, labels))
    return batches


def token_loss(model, batch):
    return model(*batch)["loss"]


def with_trainer(batches, folder):
    pytest.importorskip("transformers")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    gradients = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.append(flat_grad(model))

    settings = TrainingArguments(
        folder,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(batches),
        num_train_epochs=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": ids[0], "labels": labels[0]} for ids, labels in batches]
    trainer = Trainer(Tagger(), settings, train_dataset=data, callbacks=[Keep()])
    trainer.train()
    return gradients


def test_a2_trainer_with_ragged_tokens(field_row, tmp_path):
    batches = token_batches()
    (peer,) = with_trainer(batches, str(tmp_path))
    plan = tg.Plan(accumulate=tg.Accumulate(len(batches)))
    (ours,), _ = with_tightgrad(Tagger(), batches, plan, token_loss, lambda batch: (batch[1] != -100).sum())
    exact = exact_gradient(Tagger(), batches, token_loss)
    assert relative_error(ours, exact) < 1e-6
    field_row(
        f"A2 ragged tokens {list(TOKENS)}",
        "transformers",
        f"error {relative_error(peer, exact):.0%}, cosine {cosine(peer, exact):.3f}",
        f"{relative_error(ours, exact):.0%}, {cosine(ours, exact):.3f}",
        peer_is_wrong=relative_error(peer, exact) > 0.5,
    )


MAX_NORM = 1.0


def test_a3_clip_in_every_micro_batch(field_row, accelerator):
    """The loop that clips after every backward, without asking for `sync_gradients`."""
    batches = regression_batches(MICRO_BATCHES, scale=5.0)
    model = linear_model()
    recorder = Recorder(model)
    model, optimizer, loader = accelerator.prepare(model, recorder, loader_of(batches))
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(mean_square(model, batch))
            peer_norm = float(accelerator.clip_grad_norm_(model.parameters(), MAX_NORM))
            optimizer.step()
            optimizer.zero_grad()
    (peer,) = recorder.gradients

    plan = tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES), clip=tg.clip.GlobalNorm(MAX_NORM))
    (ours,), (record,) = with_tightgrad(linear_model(), batches, plan)
    exact = exact_gradient(linear_model(), batches)
    norm = float(exact.norm())
    assert record.grad_norm == pytest.approx(norm, rel=1e-6)
    assert relative_error(ours, exact * (MAX_NORM / norm)) < 1e-6
    field_row(
        "A3 clip at every micro-batch",
        "accelerate",
        f"cosine {cosine(peer, exact):.3f}, norm {peer_norm:.1f} for {norm:.1f}",
        f"{cosine(ours, exact):.3f}, {record.grad_norm:.1f}",
        peer_is_wrong=cosine(peer, exact) < 0.9 and peer_norm < 0.9 * norm,
    )


MANY = 1024


def test_a7_bfloat16_gradients(field_row):
    """1024 equal gradients: beyond a few hundred, adding one more in bfloat16 changes nothing."""
    generator = torch.Generator().manual_seed(0)
    factor = (0.01 * torch.rand(4096, generator=generator)).bfloat16()

    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))

        def forward(self, factor):
            return (self.values * factor).sum()

    peer = Scalar()
    for _ in range(MANY):
        (peer(factor) / MANY).backward()
    model = Scalar()
    plan = tg.Plan(accumulate=tg.Accumulate(MANY))
    (ours,), _ = with_tightgrad(model, [factor] * MANY, plan, lambda m, batch: m(batch), lambda batch: 1)
    exact = factor.double()  # the mean of equal gradients
    assert relative_error(ours, exact) < 2**-8
    peer_share, our_share = (float(grad.double().sum() / exact.sum()) for grad in (flat_grad(peer), ours))
    field_row(
        f"A7 {MANY} equal bfloat16 gradients",
        "torch",
        f"{peer_share:.1%} of the sum",
        f"{our_share:.1%}",
        peer_is_wrong=peer_share < 0.5,
    )
