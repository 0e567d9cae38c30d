"""`tightgrad bench scale`: the cost model carried on to thousands of ranks, and where each plan stops paying.

What is measured is what one rank computes; what the network does is the model's (docs/cost-model.md). Rings cross the
link of a node once; in an all-to-all, and between nodes under `hierarchical`, all ranks of a node share it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import tightgrad as tg
from tightgrad.codecs import IntBlock, TopK
from tightgrad.feedback import ErrorFeedback
from tightgrad.reducers import Hierarchical, PowerSGD, SparseTwoShot, TwoShot
from tightgrad_lab.planning.cost import Compute, PathCost, ddp_seconds
from tightgrad_lab.planning.link import Call, Link
from tightgrad_lab.planning.measure import measure_path
from tightgrad_lab.planning.run import Matrices

RANKS = (2, 4, 8, 16, 64, 256, 1024, 4096)
PROBED = (3, 8)
"""Ranks for which the path is measured; what a rank computes grows linearly between and beyond."""
REPEATS = 3


@dataclass(frozen=True)
class Machine:
    """What is imagined.

    Args:
        num_parameters: of the model.
        step_seconds: of a rank's computing in a step.
        link: of a node to the others.
        inside: between the ranks of a node.
        ranks_per_node: consecutive ranks.
    """

    num_parameters: int
    step_seconds: float
    link: Link
    inside: Link
    ranks_per_node: int


def plans(ranks_per_node: int) -> dict[str, tg.Plan]:
    """One for each reducer."""
    feedback = ErrorFeedback()
    sparse = TopK(0.001, values=IntBlock(4))
    return {
        "two_shot": tg.Plan(compress=tg.Compress(IntBlock(4), TwoShot(), feedback)),
        "gather": tg.Plan(compress=tg.Compress(sparse, feedback=feedback)),
        "sparse_two_shot": tg.Plan(compress=tg.Compress(sparse, SparseTwoShot(), feedback)),
        "powersgd": tg.Plan(compress=tg.Compress(reducer=PowerSGD(4), feedback=feedback)),
        "hierarchical": tg.Plan(compress=tg.Compress(IntBlock(4), Hierarchical(ranks_per_node), feedback)),
    }


@dataclass(frozen=True)
class Line:
    """A rank's computing as a line in the number of ranks, and its calls at the last probed number."""

    fixed_seconds: float
    seconds_per_rank: float
    probed: Mapping[int, PathCost]

    def seconds(self, ranks: int) -> float:
        """Of computing."""
        return self.fixed_seconds + self.seconds_per_rank * ranks


def measure_lines(machine: Machine) -> dict[str, Line]:
    """Measure the path of every plan on this machine."""
    model = Matrices(machine.num_parameters)
    lines = {}
    for name, plan in plans(1).items():  # inside one node nothing is encoded: the plan's path is that between nodes
        probed = {ranks: measure_path(model, plan, ranks, REPEATS) for ranks in PROBED}
        (few, small), (many, large) = probed.items()
        slope = max(0.0, (large.seconds - small.seconds) / (many - few))
        lines[name] = Line(max(0.0, small.seconds - slope * few), slope, probed)
    return lines


def predict(name: str, line: Line, ranks: int, machine: Machine) -> tuple[float, int]:
    """Seconds of a step, and bytes that a rank sends."""
    per_node = min(ranks, machine.ranks_per_node)
    if name != "hierarchical":
        calls = calls_at(line, ranks)
        network = sum(_seconds(call, ranks, machine) for call in calls)
        return machine.step_seconds + line.seconds(ranks) + network, sum(call.nbytes for call in calls)
    nodes = -(-ranks // per_node)
    dense = Call("all_reduce", _ring(4 * machine.num_parameters, per_node))
    inside = _latencies(dense, per_node) * machine.inside.latency_seconds
    inside += dense.nbytes / machine.inside.bytes_per_second
    if nodes == 1:
        return machine.step_seconds + inside, dense.nbytes
    owned = [replace(call, nbytes=call.nbytes // per_node) for call in calls_at(line, nodes)]
    network = sum(
        _latencies(call, nodes) * machine.link.latency_seconds
        + call.nbytes * per_node / machine.link.bytes_per_second  # each rank of a node has a group of its own
        for call in owned
    )
    encoding = line.seconds(nodes) / per_node
    return machine.step_seconds + encoding + inside + network, dense.nbytes + sum(call.nbytes for call in owned)


def dense_seconds(ranks: int, machine: Machine) -> tuple[float, int]:
    """Of DDP."""
    compute = Compute(machine.step_seconds / 3, 2 * machine.step_seconds / 3, 0.0)
    link = machine.inside if ranks <= machine.ranks_per_node else machine.link
    numels = [parameter.numel() for parameter in Matrices(machine.num_parameters).parameters()]
    return ddp_seconds(compute, numels, ranks, link), _ring(4 * machine.num_parameters, ranks)


def calls_at(line: Line, ranks: int) -> list[Call]:
    """A step's calls on another number of ranks than probed."""
    few, many = PROBED
    return [_at(*pair, ranks) for pair in zip(line.probed[few].calls, line.probed[many].calls, strict=True)]


def _at(first: Call, second: Call, ranks: int) -> Call:
    few, many = PROBED
    if second.operation != "all_gather":
        return replace(second, nbytes=round(second.nbytes * many / (many - 1) * (ranks - 1) / ranks))
    each_of_few, each_of_many = first.nbytes / (few - 1), second.nbytes / (many - 1)
    shrinks = each_of_many < each_of_few / 2  # each rank gathers its part of a whole, not a whole
    each = each_of_many * many / ranks if shrinks else each_of_many
    return replace(second, nbytes=round(each * (ranks - 1)))


def _seconds(call: Call, ranks: int, machine: Machine) -> float:
    """A ring crosses each node's link once; in an all-to-all each rank of a node sends over it."""
    link = machine.inside if ranks <= machine.ranks_per_node else machine.link
    crossing = machine.ranks_per_node if call.operation == "all_to_all" and ranks > machine.ranks_per_node else 1
    return _latencies(call, ranks) * link.latency_seconds + call.nbytes * crossing / link.bytes_per_second


def _latencies(call: Call, ranks: int) -> int:
    rounds = math.ceil(math.log2(max(2, ranks)))
    return {"all_reduce": 2 * (ranks - 1), "all_gather": ranks - 1}.get(call.operation, rounds)


def _ring(nbytes: int, ranks: int) -> int:
    return 2 * (ranks - 1) * nbytes // ranks


def run(machine: Machine, progress: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Predict every plan on every number of ranks.

    Returns:
        {"rows": ..., "pays_at": for each plan, the numbers of ranks where its step is shorter than dense DDP's}.
    """
    progress("what a rank computes")
    lines = measure_lines(machine)
    rows: list[dict[str, Any]] = []
    pays: dict[str, list[int]] = {name: [] for name in lines}
    for ranks in RANKS:
        dense, sent = dense_seconds(ranks, machine)
        rows.append(_row(ranks, "dense", dense, sent))
        for name, line in lines.items():
            seconds, sent = predict(name, line, ranks, machine)
            rows.append(_row(ranks, name, seconds, sent))
            if seconds < dense:
                pays[name].append(ranks)
    return {"rows": rows, "pays_at": pays, "machine": asdict(machine)}


def _row(ranks: int, plan: str, seconds: float, nbytes: int) -> dict[str, Any]:
    return {"ranks": ranks, "plan": plan, "predicted_step_seconds": seconds, "wire_bytes_per_rank": nbytes}
