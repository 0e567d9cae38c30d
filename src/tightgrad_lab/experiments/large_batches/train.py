"""One training of the image case at one batch size under one rule for the learning rate, alone in its process.

A batch larger than a micro-batch is accumulated: the gradient is that of the whole batch. No clipping, which would hide
what a rate that is too high does.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad_lab.cases.image import ImageCase, Images
from tightgrad_lab.training.case import Batch
from tightgrad_lab.training.files import finite
from tightgrad_lab.training.shards import epoch_order

MICRO_BATCH = 128
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Rule:
    """How the learning rate follows the batch.

    Args:
        optimizer: "sgd", "lars" or "lamb".
        scaling: rule of `tg.scale_lr`.
        warmup: shape of `tg.Warmup`; None has none.
    """

    optimizer: str
    scaling: str
    warmup: str | None = None


RULES = {
    "none": Rule("sgd", "none"),
    "sqrt": Rule("sgd", "sqrt"),
    "linear": Rule("sgd", "linear"),
    "linear_constant": Rule("sgd", "linear", "constant"),
    "linear_gradual": Rule("sgd", "linear", "gradual"),
    "lars": Rule("lars", "linear", "gradual"),
    "lamb": Rule("lamb", "sqrt", "gradual"),
}


@dataclass(frozen=True)
class Run:
    """What is trained.

    Args:
        rule: a name in `RULES`.
        batch: samples of one optimizer step.
        seed: of weights and order.
        epochs: passes over the training samples.
        warmup_epochs: of the rules that warm up.
        base_batch: at which the base rates work.
        rates: base learning rate of "sgd", and of the optimizer; LARS gives biases and norms the rate of "sgd".
        held_out: so many training samples are not trained on, and are what accuracy is measured on; 0 trains on all,
            and measures on the test samples.
    """

    rule: str
    batch: int
    seed: int
    epochs: int
    warmup_epochs: int
    base_batch: int
    rates: dict[str, float]
    held_out: int = 0


def train(run: Run) -> dict[str, Any]:
    """Train.

    Returns:
        "losses": mean training loss over each epoch, None from the epoch on in which it was not finite; "accuracy" at
        the end; "diverged"; "learning_rate": the highest, of the weights; "steps".
    """
    case = ImageCase()
    torch.manual_seed(run.seed)
    model = case.model()
    train_samples, test_samples = case.load()
    order = torch.randperm(len(train_samples), generator=torch.Generator().manual_seed(0))
    kept, held_out = order[run.held_out :], order[: run.held_out]
    steps = run.epochs * math.ceil(len(kept) / run.batch)
    optimizer, scheduler = make_optimizer(model, run, steps)
    peak = max(group["initial_lr"] for group in optimizer.param_groups[:1])
    micro_batch = min(run.batch, MICRO_BATCH)
    plan = tg.Plan(accumulate=tg.Accumulate(max(1, run.batch // micro_batch)))
    pipe = tg.attach(model, optimizer, plan, scheduler=scheduler)
    losses: list[float | None] = []
    for epoch in range(run.epochs):
        samples = kept[epoch_order(len(kept), run.seed, epoch)]
        try:
            losses.append(finite(_epoch(case, model, pipe, _batches(case, train_samples, samples, micro_batch))))
        except tg.NonFiniteGradientError:
            losses.append(None)
        if losses[-1] is None:
            break
    diverged = losses[-1] is None
    losses += [None] * (run.epochs - len(losses))
    accuracy = (
        _accuracy(case, model, train_samples, held_out)
        if run.held_out
        else _accuracy(case, model, test_samples, torch.arange(len(test_samples)))
    )
    return {"losses": losses, "accuracy": accuracy, "diverged": diverged, "learning_rate": peak, "steps": steps}


def make_optimizer(
    model: nn.Module, run: Run, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer with its rates scaled to the batch, and a schedule: warm-up, under a cosine to 0."""
    rule = RULES[run.rule]

    def scaled(name: str) -> float:
        return tg.scale_lr(run.rates[name], run.base_batch, run.batch, rule.scaling)

    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    plain: dict[str, Any] = {"params": vectors, "weight_decay": 0.0}
    bases = [run.rates[rule.optimizer]] * 2
    optimizer: torch.optim.Optimizer
    if rule.optimizer == "lars":
        groups: list[dict[str, Any]] = [{"params": weights}, {**plain, "lr": scaled("sgd"), "layer_adaptation": "none"}]
        bases[1] = run.rates["sgd"]
        optimizer = tg.scaling.LARS(groups, scaled("lars"), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    elif rule.optimizer == "lamb":
        groups = [{"params": weights}, {**plain, "layer_adaptation": "none"}]
        optimizer = tg.scaling.LAMB(groups, scaled("lamb"), weight_decay=WEIGHT_DECAY)
    else:
        groups = [{"params": weights}, plain]
        optimizer = torch.optim.SGD(groups, scaled("sgd"), MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedulers: list[torch.optim.lr_scheduler.LRScheduler] = []
    if rule.warmup is not None and run.batch > run.base_batch:
        warmup_steps = max(1, round(steps * run.warmup_epochs / run.epochs))
        schedulers.append(tg.Warmup(optimizer, bases, warmup_steps, rule.warmup))
    schedulers.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps))
    return optimizer, torch.optim.lr_scheduler.ChainedScheduler(schedulers, optimizer=optimizer)


def _batches(case: ImageCase, samples: Images, order: Tensor, micro_batch: int) -> Iterator[Batch]:
    for indices in order.split(micro_batch):
        yield case.batch(samples, indices)


def _epoch(case: ImageCase, model: nn.Module, pipe: tg.GradientPipeline, batches: Iterator[Batch]) -> float:
    """One step a window; return the mean loss."""
    total, seen = 0.0, 0
    for window in pipe.windows(batches):
        for batch in window:
            loss = case.loss(model, batch)
            pipe.backward(loss)
            total += float(loss.detach()) * len(batch[1])
            seen += len(batch[1])
        pipe.step()
    return total / seen


@torch.no_grad()
def _accuracy(case: ImageCase, model: nn.Module, samples: Images, indices: Tensor) -> float:
    counts = [case.count(model, case.batch(samples, part), samples, part) for part in indices.split(EVALUATION_BATCH)]
    return case.scores(torch.stack(counts).sum(0))["accuracy"]
