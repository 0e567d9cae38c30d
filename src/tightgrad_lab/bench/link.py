"""`tightgrad bench link`: training steps over links of a given rate, next to the same steps without communication.

Ranks are processes in network namespaces, and every link is shaped. Each step of a row comes right after one without
communication on the same ranks; a row's ratio is the median over pairs, so that what else the machine does cancels.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

import tightgrad as tg
from tightgrad.core.config import to_config
from tightgrad_lab.bench.framing import FramedCollective
from tightgrad_lab.bench.link_work import PEERS, Steps, Work, bare, by_hand, with_local_updates, with_tightgrad
from tightgrad_lab.bench.sent import sent_nbytes
from tightgrad_lab.common import byte_model
from tightgrad_lab.common.recommended import LOCAL, RECOMMENDED
from tightgrad_lab.errors import ArgumentError, RunError
from tightgrad_lab.network import NetRank, network, run_in_network
from tightgrad_lab.network.counters import Sent, sent
from tightgrad_lab.planning.advise import DENSE, fastest_or_dense
from tightgrad_lab.planning.cost import ddp_seconds, plan_seconds
from tightgrad_lab.planning.link import measure_link
from tightgrad_lab.planning.measure import crowding, measure_compute, measure_path

Row = dict[str, Any]
Progress = Callable[[str], object]
BASE = "no communication"
BARRIERS = 9
FRAGILE = ("torch PowerSGD",)
"""Rows that may hang or abort: each in processes of its own."""
WARM_UP = 2
SLOW_SECONDS = 5.0
"""Of a step, after which a row needs no further warm-up: what is left of it is small against the link."""
START_SECONDS = 30.0
FRAGILE_SECONDS = 40.0
MOST_SECONDS = 1200.0


@dataclass(frozen=True)
class Timing:
    """How often, and for how long at most.

    Args:
        steps: pairs of steps of each row that count.
        seconds: of one row, after which no further pair is begun (one is always taken).
        predicted_from: steps of computing alone, and of each plan's path, that a prediction starts from; 0 predicts
            nothing.
    """

    steps: int = 9
    seconds: float = 60.0
    predicted_from: int = 5


def run(
    rate_bits_per_second: int | None,
    ranks: int,
    *,
    timing: Timing | None = None,
    work: Work | None = None,
    plans: Mapping[str, tg.Plan] | None = None,
    peers: Sequence[str] = tuple(PEERS),
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Measure every row at one rate.

    Args:
        rate_bits_per_second: of each rank's link, in both directions; None is as fast as the machine copies.
        ranks: processes, one thread each, in a namespace each.
        timing: how often.
        work: what is trained; None for a transformer of about 7 million parameters.
        plans: rows of TightGrad; None for all recommended ones.
        peers: other rows, of PEERS, or of LOCAL.
        progress: called with a line now and then.

    Returns:
        {"rows": ..., "work": ..., "link": latency and bandwidth as measured between the ranks, "advice": which plan the
        predictions recommend, and how many times as long its measured step is as the fastest measured one}. In a row,
        `wire_bytes` is what our counter says that rank 0 sends in a step (for peers: what the profiler sees its
        collectives send), `framing_bytes` gloo's own headers by the same counter (None for peers), `interface_bytes`
        what its interface counts, with the network's headers, and `interface_payload_bytes` without, which is to be
        the sum of the first two. `predicted_step_seconds` is the cost model's, from measurements made before the row.

    Raises:
        ArgumentError: this machine has no network namespaces for us.
        RunError: a row other than the fragile ones failed.
    """
    timing, work = timing or Timing(), work or Work()
    wanted: list[Row] = [{"plan": name, "config": None} for name in peers if name != BASE]
    wanted += [
        {"plan": name, "config": to_config(plan)} for name, plan in (RECOMMENDED if plans is None else plans).items()
    ]
    about = {"rate_bits_per_second": rate_bits_per_second, "ranks": ranks}
    rows: list[Row] = []
    found: dict[str, Any] = {}

    def receive(message: Row) -> None:
        if "plan" not in message:
            found.update(message)
            return
        rows.append(about | message)
        progress(f"{message['plan']}: {message['step_seconds']:.3f} s a step")

    with network(ranks, rate_bits_per_second) as net:
        sturdy = [row for row in wanted if row["plan"] not in FRAGILE]
        if sturdy:
            run_in_network(net, _measure, (work, timing, sturdy), receive, timeout_seconds=MOST_SECONDS)
        for row in wanted:
            if row["plan"] in FRAGILE:
                limit = START_SECONDS + FRAGILE_SECONDS + timing.seconds
                try:
                    run_in_network(net, _measure, (work, timing, [row]), receive, timeout_seconds=limit)
                except RunError as error:
                    progress(f"{row['plan']}: {error}")
                    rows.append(about | failed(row["plan"], str(error)))
    unique: dict[str, Row] = {}
    for row in rows:  # every launch measures the row without communication again
        unique.setdefault(row["plan"], row)
    order = [BASE, *(row["plan"] for row in wanted)]
    return {
        "rows": sorted(unique.values(), key=lambda row: order.index(row["plan"])),
        "work": asdict(work) | {"num_parameters": work.num_parameters},
        "advice": advice(list(unique.values())),
        **found,
    }


def advice(rows: Sequence[Row]) -> dict[str, Any] | None:
    """What the predictions recommend, held to the measured steps; None if a plan or dense has no prediction."""
    order = [DENSE, *RECOMMENDED]
    known = sorted((row for row in rows if row["plan"] in order), key=lambda row: order.index(row["plan"]))
    predicted = {row["plan"]: row["predicted_step_seconds"] for row in known}
    if not predicted or None in predicted.values():
        return None
    chosen = fastest_or_dense(predicted)
    measured = {row["plan"]: row["step_seconds"] for row in known}
    fastest = min(measured, key=measured.__getitem__)
    return {
        "recommended": chosen,
        "fastest_measured": fastest,
        "recommended_over_fastest": measured[chosen] / measured[fastest],
        "largest_prediction_error": max(abs(predicted[name] / measured[name] - 1) for name in predicted),
    }


def chosen(names: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, tg.Plan]]:
    """Peers and plans of these names; None chooses all but local updates, whose steps are not those of the others.

    Raises:
        ArgumentError: there is no such row.
    """
    known = [*PEERS, *LOCAL, *RECOMMENDED]
    for name in names or ():
        if name not in known:
            raise ArgumentError(f"--row {name!r} is unknown; choose from: {', '.join(known)}.")
    wanted = [*PEERS, *RECOMMENDED] if names is None else names
    return tuple(name for name in (*PEERS, *LOCAL) if name in wanted), {
        n: p for n, p in RECOMMENDED.items() if n in wanted
    }


def failed(plan: str, error: str) -> Row:
    """A row without numbers."""
    nothing = (
        "step_seconds",
        "ratio_to_no_communication",
        "wire_bytes",
        "framing_bytes",
        "interface_bytes",
        "interface_payload_bytes",
        "predicted_step_seconds",
    )
    return {"plan": plan, **dict.fromkeys(nothing), "error": error}


def _measure(rank: NetRank, send: Callable[[Any], None], work: Work, timing: Timing, wanted: Sequence[Row]) -> None:
    predicted = _predictions(rank, send, work, timing.predicted_from, wanted)
    base = by_hand(work, bare)
    for _ in range(WARM_UP):
        next(base)
    alone: list[float] = []
    for row in wanted:
        plan = _plan_of(row)
        collective = FramedCollective()
        local = LOCAL.get(row["plan"])
        if local is not None:
            steps = with_local_updates(work, local, collective)
        else:
            steps = by_hand(work, PEERS[row["plan"]]) if plan is None else with_tightgrad(work, plan, collective)
        measured = _row(row["plan"], steps, base, timing, rank, collective, local.every if local else 1)
        alone += measured.pop("alone")
        if rank.rank == 0:
            send(measured | {"predicted_step_seconds": predicted.get(row["plan"])})
        del steps
    if rank.rank == 0:
        send(
            {
                "plan": BASE,
                "step_seconds": statistics.median(alone),
                "ratio_to_no_communication": 1.0,
                "wire_bytes": 0,
                "framing_bytes": 0,
                "interface_bytes": 0,
                "interface_payload_bytes": 0,
                "error": None,
                "steps": len(alone),
                "predicted_step_seconds": predicted.get(BASE),
            }
        )


def _plan_of(row: Row) -> tg.Plan | None:
    return None if row["config"] is None else tg.Plan.from_config({"version": 1, **row["config"]})


def _predictions(
    rank: NetRank, send: Callable[[Any], None], work: Work, repeats: int, wanted: Sequence[Row]
) -> dict[str, float]:
    """What the cost model says of each row, on rank 0. All ranks compute at once, as they train at once."""
    link = measure_link()
    if rank.rank == 0:
        send({"link": asdict(link)})
    if not repeats:
        return {}
    model = work.model()
    dist.barrier()
    compute = measure_compute(model, work.optimizer(model), byte_model.loss, work.batches(), repeats)
    numels = [parameter.numel() for parameter in model.parameters()]
    predicted = {BASE: compute.seconds, "dense": ddp_seconds(compute, numels, rank.ranks, link)}
    for row in wanted:
        plan = _plan_of(row)
        if plan is not None and rank.rank == 0:
            path = measure_path(model, plan, rank.ranks, repeats, crowding(rank.ranks))
            predicted[row["plan"]] = plan_seconds(compute, path, rank.ranks, link)
    dist.barrier()
    return predicted


def _row(
    name: str, steps: Steps, base: Steps, timing: Timing, rank: NetRank, collective: FramedCollective, every: int
) -> Row:
    """Pairs of a step without communication and one of this row; with `every`, pairs of so many, and their means."""
    for _ in range(WARM_UP):
        taken, _record = _timed(lambda: _advance(steps, every))
        if not _all_agree(taken < SLOW_SECONDS):
            break
    counted = framing = None
    if name in PEERS and name not in FRAGILE:
        counted = sent_nbytes(lambda: next(steps), rank.rank, rank.ranks)
    alone: list[float] = []
    seconds: list[float] = []
    counters: list[Sent] = []
    stages: list[Mapping[str, float]] = []
    barrier = _of_a_barrier()
    begun = time.monotonic()
    while len(seconds) < timing.steps and _all_agree(not seconds or time.monotonic() - begun < timing.seconds):
        dist.barrier()
        alone.append(_timed(lambda: _advance(base, every))[0] / every)
        dist.barrier()
        before, frames_before = sent(), collective.frames.nbytes
        taken, record = _timed(lambda: _advance(steps, every))
        dist.barrier()  # all that this rank sends has left when every rank has what it waits for
        seconds.append(taken / every)
        counters.append(sent().since(before).since(barrier))
        if record is not None:
            counted = None if record.wire_bytes is None else round(record.wire_bytes / every)
            framing = round((collective.frames.nbytes - frames_before) / every)
            stages.append(record.stage_seconds)
    return {
        "plan": name,
        "step_seconds": statistics.median(seconds),
        "ratio_to_no_communication": statistics.median(s / a for s, a in zip(seconds, alone, strict=True)),
        "wire_bytes": counted,
        "framing_bytes": framing,
        "interface_bytes": round(statistics.median(c.nbytes for c in counters) / every),
        "interface_payload_bytes": round(statistics.median(c.payload_nbytes for c in counters) / every),
        "error": None,
        "steps": len(seconds),
        "stage_seconds": {key: statistics.median(s.get(key, 0.0) for s in stages) for key in stages[0]}
        if stages
        else {},
        "alone": alone,
    }


def _of_a_barrier() -> Sent:
    """What the barrier after a step sends, which is not the step's."""
    found = []
    for _ in range(BARRIERS):
        dist.barrier()
        before = sent()
        dist.barrier()
        found.append(sent().since(before))
    return Sent(
        statistics.median_low(each.nbytes for each in found), statistics.median_low(each.packets for each in found)
    )


def _advance(steps: Steps, count: int) -> "tg.StepRecord | None":
    """Take so many steps; the last one's record."""
    for _ in range(count - 1):
        next(steps)
    return next(steps)


def _timed(body: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = body()
    return time.perf_counter() - start, result


def _all_agree(flag: bool) -> bool:
    told = torch.tensor(int(flag))
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return bool(told)
