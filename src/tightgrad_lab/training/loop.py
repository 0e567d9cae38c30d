"""One training run: DDP and a pipeline as anyone would write them, with everything measured on the way."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad.core.types import GradSpec
from tightgrad_lab.training.case import AnyCase, Batch, Settings
from tightgrad_lab.training.files import finite
from tightgrad_lab.training.memory import peak_memory
from tightgrad_lab.training.ranks import Rank
from tightgrad_lab.training.shards import epoch_order, rank_batches

EVALUATION_BATCH = 250
PROBES = 3
PROBE_STEPS = 2  # optimizer state and residuals exist from the second step on

Record = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far one run is."""

    step: int
    steps: int
    value: float | None = None
    """The metric after the last finished epoch."""


@dataclass
class Result:
    """What one run gave; `value` and `epochs` are the same on every rank, the rest is rank 0's.

    Attributes:
        value: the metric after the last epoch.
        epochs: mean training loss and metric of each epoch.
        steps: one record a step, as in steps.jsonl.
        num_parameters: of the model.
        batch_shape: of the first tensor of the first micro-batch.
        batch_nbytes: of that tensor.
        payload_nbytes: of one rank's encoded gradient; None if that depends on the data.
        peak_memory_bytes: most bytes of live tensors within one step, with parameters, optimizer and residuals.
        seconds: of the whole run, evaluation included.
    """

    value: float = math.nan
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

    def __init__(self, case: AnyCase, ddp: DistributedDataParallel, pipe: tg.GradientPipeline) -> None:
        self.case, self.ddp, self.pipe = case, ddp, pipe
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
        self.train, self.test = case.load()
        micro_batches = settings.micro_batches if plan.accumulate else 1
        self.batch_size = settings.rank_batch_size(rank.ranks) // micro_batches
        self.steps_per_epoch = math.ceil(len(self.train) / settings.batch_size)
        self.steps = self.steps_per_epoch * settings.epochs

    def run(self, report: Callable[[Progress], None]) -> Result:
        """Train, evaluate after every epoch, measure."""
        result = Result(peak_memory_bytes=peak_memory(self._probe, self.rank.device, PROBES))
        start = time.perf_counter()
        training = self.start()
        result.num_parameters = sum(parameter.numel() for parameter in training.model.parameters())
        for epoch in range(self.settings.epochs):
            steps = []
            for step in training.steps(self.batches(epoch)):
                steps.append(step)
                result.steps.append(_record(step, epoch))
                report(Progress(len(result.steps), self.steps, None if math.isnan(result.value) else result.value))
            train_loss = self._share(result.steps[-len(steps) :], steps)
            result.value = self._evaluate(training.model)
            result.epochs.append({"epoch": epoch, "train_loss": finite(train_loss), "value": result.value})
        result.seconds = time.perf_counter() - start
        first = next(self.batches(0))
        result.batch_shape, result.batch_nbytes = tuple(first[0].shape), first[0].nbytes
        result.payload_nbytes = _payload_nbytes(self.plan, training.model)
        return result

    def start(self) -> Training:
        """Make model, optimizer and pipeline anew."""
        torch.manual_seed(self.seed)
        model = self.case.model().to(self.rank.device)
        optimizer = self.case.optimizer(model, self.settings)
        device_ids = [self.rank.device.index] if self.rank.device.type == "cuda" else None
        ddp = DistributedDataParallel(model, device_ids=device_ids)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        pipe = tg.attach(ddp, optimizer, self.plan, weight=self.case.weight, seed=self.seed, scheduler=schedule)
        return Training(self.case, ddp, pipe)

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

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's micro-batches of an epoch."""
        order = epoch_order(len(self.train), self.seed, epoch)
        for indices in rank_batches(order, self.rank.rank, self.rank.ranks, self.batch_size):
            yield tuple(tensor.to(self.rank.device) for tensor in self.case.batch(self.train, indices))

    def _share(self, records: list[Record], steps: list[_Step]) -> float:
        """Put into each record the loss over all ranks and the bytes of the busiest; return the epoch's mean loss."""
        losses = torch.tensor([[step.total_loss, step.total_weight] for step in steps], dtype=torch.float64)
        sent = torch.tensor([step.record.wire_bytes for step in steps])
        losses, sent = losses.to(self.rank.device), sent.to(self.rank.device)
        dist.all_reduce(losses)
        dist.all_reduce(sent, dist.ReduceOp.MAX)
        for record, (loss, weight), nbytes in zip(records, losses.tolist(), sent.tolist(), strict=True):
            record["loss"], record["wire_bytes"] = finite(loss / weight), nbytes
        total_loss, total_weight = losses.sum(0).tolist()
        return float(total_loss / total_weight)

    @torch.no_grad()
    def _evaluate(self, model: nn.Module) -> float:
        """The metric over the test samples, which the ranks share out."""
        model.eval()
        shard = torch.arange(len(self.test))[self.rank.rank :: self.rank.ranks]
        counts = [
            self.case.count(model, tuple(tensor.to(self.rank.device) for tensor in self.case.batch(self.test, indices)))
            for indices in shard.split(EVALUATION_BATCH)
        ]
        total = torch.stack(counts).sum(0).to(self.rank.device)
        dist.all_reduce(total)
        model.train()
        return self.case.score(total)


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
        "weight": done.weight,
        "micro_batches": done.micro_batches,
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
