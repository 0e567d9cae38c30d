"""Real steps of real ranks: seconds of each stage, bytes of each collective."""

import statistics
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad.codecs import Cast, IntBlock, TopK
from tightgrad.core.types import GradSpec
from tightgrad.reducers import PowerSGD
from tightgrad_lab.common import byte_model
from tightgrad_lab.common.labels import label
from tightgrad_lab.schema.compression import EncodeLane
from tightgrad_lab.training.ranks import Rank, Send

STAGES = ("encode", "collective", "decode")
PLANS = {
    "dense": tg.Compress(),
    "cast": tg.Compress(Cast("float16")),
    "quantise": tg.Compress(IntBlock(4), feedback=tg.ErrorFeedback()),
    "sparsify": tg.Compress(TopK(0.01, values=IntBlock(4)), feedback=tg.ErrorFeedback()),
    "low_rank": tg.Compress(None, PowerSGD(4), tg.ErrorFeedback()),
}


@dataclass(frozen=True)
class Lane:
    """What a rank does.

    Args:
        plan: a name in PLANS.
        warm_up: steps that are not counted.
        steps: steps that are.
        batch_size: pieces of text of one rank's step.
    """

    plan: str
    warm_up: int
    steps: int
    batch_size: int


def measure(rank: Rank, send: Send, lanes: list[Lane]) -> None:
    """Measure all lanes; rank 0 sends a dictionary for each. Collective: runs on every rank."""
    for lane in lanes:
        found = measure_lane(rank, lane)
        if rank.rank == 0:
            send(found)


def measure_lane(rank: Rank, lane: Lane) -> EncodeLane:
    """Train a few steps.

    Returns:
        Median "seconds" of each stage and of "step"; "wire_bytes" and "by_collective" of one step of this rank;
        "payload_bytes" of one encoded gradient, None without a codec; "gradient_bytes"; "residual_norm".
    """
    compress = PLANS[lane.plan]
    torch.manual_seed(0)
    model = byte_model.ByteTransformer()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), byte_model.LEARNING_RATE)
    pipe = tg.attach(ddp, optimizer, tg.Plan(compress=compress))
    generator = torch.Generator().manual_seed(rank.rank)
    traffic = pipe.adapter.collective.traffic
    records: list[tg.StepRecord] = []
    before: dict[str, int] = {}
    batches = [byte_model.batch(lane.batch_size, generator) for _ in range(lane.warm_up + lane.steps)]
    for window in pipe.windows(batches):
        if len(records) == lane.warm_up:
            before = dict(traffic.by_operation)
        for batch in window:
            pipe.backward(byte_model.loss(ddp, batch))
        records.append(pipe.step())
    counted = records[lane.warm_up :]
    stages = {name for record in counted for name in record.stage_seconds}
    return {
        "plan": lane.plan,
        "method": _label(compress),
        "reducer": compress.reducer.card.id if compress.reducer else "",
        "feedback": compress.feedback.card.id if compress.feedback else None,
        "seconds": {
            name: statistics.median(record.stage_seconds.get(name, 0.0) for record in counted)
            for name in sorted(stages)
        },
        "wire_bytes": statistics.median(record.wire_bytes or 0 for record in counted),
        "by_collective": {
            name: (total - before.get(name, 0)) / lane.steps for name, total in sorted(traffic.by_operation.items())
        },
        "payload_bytes": _payload_nbytes(compress, model),
        "gradient_bytes": sum(parameter.numel() * 4 for parameter in model.parameters()),
        "residual_norm": counted[-1].residual_norm,
    }


def _label(compress: tg.Compress) -> str:
    if compress.codec is not None:
        return label(compress.codec)
    assert compress.reducer is not None
    return label(compress.reducer)


def _payload_nbytes(compress: tg.Compress, model: torch.nn.Module) -> int | None:
    if compress.codec is None:
        return None
    sizes = [compress.codec.payload_nbytes(GradSpec.of(name, p)) for name, p in model.named_parameters()]
    return None if None in sizes else sum(size for size in sizes if size is not None)
