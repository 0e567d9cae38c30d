"""One training run: DDP and a pipeline as anyone would write them, with everything measured on the way."""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad.core.types import GradSpec
from tightgrad_lab.training.case import AnyCase, Batch, Scores, Settings
from tightgrad_lab.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from tightgrad_lab.training.evaluation import evaluate, evaluate_last
from tightgrad_lab.training.files import finite
from tightgrad_lab.training.memory import peak_memory
from tightgrad_lab.training.ranks import Rank
from tightgrad_lab.training.shards import epoch_order, rank_batches

CHECKPOINT_STEPS = 100
CHECKPOINTS = 50  # a checkpoint holds a record of every step before it, so their number bounds what is written
PROBES = 2
PROBE_STEPS = 2  # optimizer state and residuals exist from the second step on

Record = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far one run is."""

    step: int
    steps: int
    value: float | None = None
    """The metric after the last finished epoch."""


@dataclass(frozen=True)
class Keep:
    """Where a run keeps its checkpoints.

    Args:
        folder: shared by all ranks.
        resume: start from the newest, if there is one.
        every: steps from one checkpoint to the next; None takes 100, or more in runs of more than 5,000 steps.
    """

    folder: Path
    resume: bool = False
    every: int | None = None

    def steps_apart(self, steps: int) -> int:
        """Steps from one checkpoint to the next in a run of `steps`."""
        return self.every or max(CHECKPOINT_STEPS, steps // CHECKPOINTS)


@dataclass
class Result:
    """What one run gave; `value` and `epochs` are the same on every rank, the rest is rank 0's.

    Attributes:
        value: the metric after the last epoch.
        scores: all scores after the last epoch, by name.
        epochs: mean training loss, metric and scores of each epoch.
        steps: one record a step, as in steps.jsonl.
        num_parameters: of the model.
        batch_shape: of the first tensor of the first micro-batch.
        batch_nbytes: of that tensor.
        payload_nbytes: of one rank's encoded gradient; None if that depends on the data.
        peak_memory_bytes: most bytes of live tensors within one step, with parameters, optimizer and residuals.
        seconds: of the whole run, evaluation included.
    """

    value: float = math.nan
    scores: Scores = field(default_factory=dict)
    epochs: list[Record] = field(default_factory=list)
    steps: list[Record] = field(default_factory=list)
    num_parameters: int = 0
    batch_shape: tuple[int, ...] = ()
    batch_nbytes: int = 0
    payload_nbytes: int | None = None
    peak_memory_bytes: int = 0
    seconds: float = 0.0

    def median_seconds(self) -> float:
        """Median of the steps' seconds: fetching, all micro-batches, and the optimizer step."""
        return float(statistics.median(step["seconds"] for step in self.steps))


@dataclass(frozen=True)
class _Step:
    total_loss: float
    total_weight: float
    seconds: float
    forward_seconds: float
    record: tg.StepRecord


class Training:
    """A model in training: the loop that a user of the library writes."""

    def __init__(
        self,
        case: AnyCase,
        ddp: DistributedDataParallel,
        pipe: tg.GradientPipeline,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
    ) -> None:
        self.case, self.ddp, self.pipe, self.scheduler = case, ddp, pipe, scheduler
        self.model: nn.Module = ddp.module

    def steps(self, batches: Iterator[Batch]) -> Iterator[_Step]:
        """Take one optimizer step a window."""
        start = time.perf_counter()
        for window in self.pipe.windows(batches):
            forward_seconds = total_loss = total_weight = 0.0
            for batch in window:
                forward_start = time.perf_counter()
                loss = self.case.loss(self.ddp, batch)
                forward_seconds += time.perf_counter() - forward_start
                self.pipe.backward(loss)
                weight = float(self.case.weight(batch))
                total_loss += float(loss.detach()) * weight
                total_weight += weight
            record = self.pipe.step()
            yield _Step(total_loss, total_weight, time.perf_counter() - start, forward_seconds, record)
            start = time.perf_counter()


class Trainer:
    """Trains one case under one plan on this rank. Collective: every rank must do the same with it."""

    def __init__(self, case: AnyCase, settings: Settings, plan: tg.Plan, seed: int, rank: Rank) -> None:
        self.case, self.settings, self.plan, self.seed, self.rank = case, settings, plan, seed, rank
        self.train, self.test = (case.placed(samples, rank.device) for samples in case.load())
        self.micro_batches = settings.micro_batches if plan.accumulate else 1
        self.batch_size = settings.rank_batch_size(rank.ranks) // self.micro_batches
        self.steps_per_epoch = math.ceil(len(self.train) / settings.batch_size)
        self.steps = self.steps_per_epoch * settings.epochs

    def run(self, report: Callable[[Progress], None], keep: Keep | None = None) -> tuple[Result, nn.Module]:
        """Train, evaluate after every epoch, measure.

        Args:
            report: told of every step.
            keep: where to keep checkpoints, and whether to start from the newest.

        Returns:
            What was measured, and the trained model.
        """
        resumed = keep is not None and keep.resume and has_checkpoint(keep.folder)
        result = Result()
        if not resumed:
            result.peak_memory_bytes = peak_memory(self._probe, self.rank.device, PROBES)
        training = self.start()
        if keep is not None and resumed:
            saved = load_checkpoint(keep.folder, self.rank, training.pipe, training.model, training.scheduler)
            result = Result(**saved)
        result.num_parameters = sum(parameter.numel() for parameter in training.model.parameters())
        start = time.perf_counter() - result.seconds
        for epoch in range(len(result.epochs), self.settings.epochs):
            fresh: list[_Step] = []
            for step in training.steps(self.batches(epoch, len(result.steps) - epoch * self.steps_per_epoch)):
                fresh.append(step)
                result.steps.append(_record(step, epoch))
                report(Progress(len(result.steps), self.steps, None if math.isnan(result.value) else result.value))
                if keep is not None and len(result.steps) % keep.steps_apart(self.steps) == 0:
                    self._share(result.steps[-len(fresh) :], fresh)
                    fresh = []
                    result.seconds = time.perf_counter() - start
                    save_checkpoint(
                        keep.folder, self.rank, training.pipe, training.model, training.scheduler, asdict(result)
                    )
            self._share(result.steps[len(result.steps) - len(fresh) :], fresh)
            result.scores = evaluate(self.case, training.model, self.test, self.rank)
            result.value = result.scores[self.case.metric]
            result.epochs.append(
                {
                    "epoch": epoch,
                    "train_loss": _mean_loss(result.steps, epoch),
                    "value": finite(result.value),
                    "metrics": {name: finite(value) for name, value in result.scores.items()},
                }
            )
        result.scores = {**result.scores, **evaluate_last(self.case, training.model, self.test, self.rank)}
        result.seconds = time.perf_counter() - start
        first = next(self.batches(0))
        result.batch_shape, result.batch_nbytes = tuple(first[0].shape), first[0].nbytes
        result.payload_nbytes = _payload_nbytes(self.plan, training.model)
        return result, training.model

    def start(self) -> Training:
        """Make model, optimizer and pipeline anew."""
        torch.manual_seed(self.seed)
        model = self.case.model().to(self.rank.device)
        optimizer = self.case.optimizer(model, self.settings)
        device_ids = [self.rank.device.index] if self.rank.device.type == "cuda" else None
        ddp = DistributedDataParallel(model, device_ids=device_ids)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        with warnings.catch_warnings():  # the image models have BatchNorm under every plan, so that plans compare
            warnings.filterwarnings("ignore", "BatchNorm in training mode", tg.TightGradWarning)
            pipe = tg.attach(ddp, optimizer, self.plan, weight=self.case.weight, seed=self.seed, scheduler=schedule)
        return Training(self.case, ddp, pipe, schedule)

    def _probe(self) -> None:
        training = self.start()
        steps = training.steps(self.batches(0))
        for _ in range(min(PROBE_STEPS, self.steps_per_epoch)):
            next(steps)

    def rate(self, step: int) -> float:
        """Of the learning rate at a step: linear warm-up, then a cosine to 0."""
        warmup = max(1, round(self.settings.warmup_fraction * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def batches(self, epoch: int, skipped_steps: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of an epoch, from some step on."""
        order = epoch_order(len(self.train), self.seed, epoch)
        order = self.case.order(self.train, order, self.settings.batch_size)
        batches = rank_batches(order, self.rank.rank, self.rank.ranks, self.batch_size)
        for indices in batches[skipped_steps * self.micro_batches :]:
            yield tuple(tensor.to(self.rank.device) for tensor in self.case.batch(self.train, indices))

    def _share(self, records: list[Record], steps: list[_Step]) -> None:
        """Put into each record the loss over all ranks, and the bytes of the rank that sent most."""
        if not steps:
            return
        losses = torch.tensor([[step.total_loss, step.total_weight] for step in steps], dtype=torch.float64)
        sent = torch.tensor([step.record.wire_bytes for step in steps])
        losses, sent = losses.to(self.rank.device), sent.to(self.rank.device)
        dist.all_reduce(losses)
        dist.all_reduce(sent, dist.ReduceOp.MAX)
        for record, (loss, weight), nbytes in zip(records, losses.tolist(), sent.tolist(), strict=True):
            record["loss"], record["wire_bytes"] = finite(loss / weight) if weight else None, nbytes


def _mean_loss(records: list[Record], epoch: int) -> float | None:
    own = [record for record in records if record["epoch"] == epoch and record["weight"]]
    if not own or any(record["loss"] is None for record in own):
        return None
    return float(sum(r["loss"] * r["weight"] for r in own) / sum(r["weight"] for r in own))


def _record(step: _Step, epoch: int) -> Record:
    done = step.record
    return {
        "step": done.step,
        "epoch": epoch,
        "loss": None,
        "grad_norm": finite(done.grad_norm),
        "clip_coef": finite(done.clip_coef),
        "wire_bytes": done.wire_bytes,
        "residual_norm": finite(done.residual_norm),
        "skipped": done.skipped,
        "skip_reason": done.skip_reason,
        "weight": done.weight,
        "micro_batches": done.micro_batches,
        "retries": done.retries,
        "clip_rate": done.clip_rate,
        "memory_bytes": done.memory_bytes,
        "compression_cosine": finite(done.compression_cosine),
        "warm_start_overlap": finite(done.warm_start_overlap),
        "parameter_norm": finite(done.parameter_norm),
        "seconds": step.seconds,
        "stage_seconds": {"forward": step.forward_seconds, **done.stage_seconds},
    }


def _payload_nbytes(plan: tg.Plan, model: nn.Module) -> int | None:
    """Bytes of one rank's encoded gradient, or of the gradient without a codec; None if they depend on the data."""
    codec = plan.compress.codec if plan.compress else None
    total = 0
    for name, parameter in model.named_parameters():
        nbytes = codec.payload_nbytes(GradSpec.of(name, parameter)) if codec else parameter.numel() * 4
        if nbytes is None:
            return None
        total += nbytes
    return total
