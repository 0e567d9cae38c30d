"""The weights of ragged micro-batches on several processes."""

from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Two to four processes with one to four micro-batches each, of very different sizes."""
    found: list[Case] = []
    for _ in range(10):
        sizes = [draw.integer(2, 4) for _ in range(draw.integer(2, 4))]
        tokens = [[draw.pick((1, 2, 3, 16, 17, 40)) for _ in range(size)] for size in sizes]
        found.append((tokens, [[draw.signed(0.5, 9.0, 1) for _ in row] for row in tokens]))
    return found


def right(
    tokens: list[list[int]],
    gradients: list[list[float]],
    world: str = "times",
    count: str = "all",
    mean: str = "means",
    total: str = "tokens",
    across: str = "mean",
) -> dict[str, Any]:
    """Return the answer."""
    processes, everything = len(tokens), sum(map(sum, tokens))
    sums = [sum(n * g for n, g in zip(ns, gs, strict=True)) for ns, gs in zip(tokens, gradients, strict=True)]
    flat = [g for row in gradients for g in row]
    averages = [sum(row) / len(row) for row in gradients]
    totals = {
        "tokens": sum(sums) / everything,
        "sum": sum(sums),
        "plain": sum(flat) / len(flat),
        "times": processes * sum(sums) / everything,
        "divided": sum(sums) / everything / processes,
    }
    means = {"means": sum(averages) / processes, "flat": sum(flat) / len(flat), "sum": sum(averages)}
    scale = {"times": processes, "none": 1.0, "divided": 1.0 / processes, "K": 1.0}[world]
    items = [everything if count == "all" else sum(row) for row in tokens]
    factors = [[scale * n / own for n in row] for row, own in zip(tokens, items, strict=True)]
    if world == "K":
        factors = [[len(row) * one for one in row] for row in factors]
    if count == "K":
        factors = [[1.0 / len(row) for _ in row] for row in tokens]
    local = sum(one / sum(row) for one, row in zip(sums, tokens, strict=True)) / (processes if across == "mean" else 1)
    return {"right": totals[total], "mean_of_means": means[mean], "factors": factors, "local_count": local}


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    slips=(
        slip(
            "the factor W is missing: DDP averages, which divides by the number of processes once more",
            "漏了系数 W：DDP 取平均，又多除了一次进程数",
            world="none",
        ),
        slip(
            "you divide by W; DDP does that already, so multiply by W",
            "你除以了 W；DDP 已经除过，应当乘以 W",
            world="divided",
        ),
        slip(
            "your count covers one process only; count the tokens of all processes",
            "你只数了本进程的词元；要数所有进程的",
            count="own",
        ),
        slip(
            "this is 1/K: it weights micro-batches and not tokens", "这是 1/K：按微批次加权了，而不是按词元", count="K"
        ),
        slip("this is a sum over tokens; divide it by their number", "这是对词元的和，还要除以词元数", total="sum"),
        slip(
            "this is the mean of the micro-batches' means; weight each by its tokens",
            "这是各微批次均值的均值；每个要按词元数加权",
            total="plain",
        ),
        slip(
            "the right gradient does not contain W: it is that of one big batch",
            "正确的梯度与 W 无关：它就是一个大批次的梯度",
            total="times",
        ),
        slip(
            "average within each process first, then over the processes: the processes may have different K",
            "应当先在每个进程内平均，再对进程平均：各进程的 K 可能不同",
            mean="flat",
        ),
        slip("DDP averages the processes; you added them", "DDP 是对进程取平均；你把它们相加了", mean="sum"),
        slip("DDP averages the processes; you added them", "DDP 是对进程取平均；你把它们相加了", across="sum"),
        slip(
            "you multiply by K as well: the share of the tokens is the whole weight",
            "你又乘了 K：词元的份额就是全部的权重",
            world="K",
        ),
        slip(
            "you divide by the number of processes as well: the tokens of all processes are counted already",
            "你又除以了进程数：所有进程的词元已经数进去了",
            total="divided",
        ),
    ),
)
