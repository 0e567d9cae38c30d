"""How accumulation, clipping and compression change each other's numbers."""

import math
from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Bounds between the two norms, and outside; once the steps come out even."""
    found: list[Case] = []
    for index in range(12):
        true, noise, count = draw.real(0.1, 1.0), draw.real(1.0, 4.0), draw.pick((2, 4, 8, 16, 32))
        one = math.hypot(true, noise)
        bound = round(one * (draw.real(1.2, 2.0) if index % 4 == 3 else draw.real(0.1, 0.9)), 3)
        rate, distance = draw.real(0.01, 0.3), draw.real(3.0, 50.0, 2)
        if abs(distance / (rate * bound) % 1 - 0.5) > 0.499:
            distance += rate * bound / 3  # nearly an integer: rounding would decide
        if index == 0:
            bound, rate, distance = 0.5, 0.125, draw.integer(20, 90) / 16  # exact in binary
        processes, factor = draw.pick((2, 4, 8)), draw.real(2.0, 60.0, 1)
        found.append((true, noise, count, bound, rate, distance, processes, factor))
    return found


def right(
    true: float,
    noise: float,
    micro_batches: int,
    bound: float,
    rate: float,
    distance: float,
    processes: int,
    factor: float,
    add: str = "squares",
    shrink: str = "square",
    cap: bool = True,
    steps: str = "ceil",
    local: str = "root",
    traffic: str = "both",
    turn: str = "down",
) -> dict[str, Any]:
    """Return the answer."""
    count = {"square": micro_batches, "norm": micro_batches**2, "none": 1, "root": math.sqrt(micro_batches)}.get(
        shrink, 1
    )
    quiet = noise / math.sqrt(count)
    one, many = (math.hypot(true, noise), math.hypot(true, quiet)) if add == "squares" else (true + noise, true + quiet)
    if shrink == "all":
        many = one / math.sqrt(micro_batches)
    exact = distance / (rate * bound)
    return {
        "one": one,
        "many": many,
        "factor_one": _clip(bound, one, cap, turn),
        "factor_many": _clip(bound, many, cap, turn),
        "steps": {
            "ceil": math.ceil(exact),
            "floor": int(exact),
            "more": int(exact) + 1,
            "exact": exact,
            "rate": math.ceil(distance / rate),
        }[steps],
        "local": {
            "root": bound / math.sqrt(processes),
            "share": bound / processes,
            "same": bound,
            "times": bound * math.sqrt(processes),
        }[local],
        "traffic": {
            "both": 1 / (micro_batches * factor),
            "factor": 1 / factor,
            "count": 1 / micro_batches,
            "inverse": micro_batches * factor,
            "processes": 1 / (micro_batches * factor * processes),
            "mixed": micro_batches / factor,
            "less": 1 - 1 / (micro_batches * factor),
        }[traffic],
    }


def _clip(bound: float, norm: float, cap: bool, turn: str) -> float:
    factor = bound / norm if turn == "down" else norm / bound
    return min(1.0, factor) if cap else factor


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    together=2,
    slips=(
        slip(
            "norms of independent parts do not add; their squares do",
            "相互独立的部分，相加的不是范数，而是范数的平方",
            add="norms",
        ),
        slip(
            "the square of the noise falls with K, its norm with the root of K",
            "随 K 减小的是噪声的平方；噪声的范数只按 K 的平方根减小",
            shrink="norm",
        ),
        slip(
            "the square of the noise falls with K, not with its root",
            "噪声的平方按 K 减小，不是按 K 的平方根",
            shrink="root",
        ),
        slip("accumulation averages the noise away", "累积会把噪声平均掉一部分", shrink="none"),
        slip(
            "a gradient below the bound keeps its length: the factor is at most 1",
            "没超过上限的梯度长度不变：系数至多为 1",
            cap=False,
        ),
        slip("a fraction of a step is a step: round up", "不足一步也是一步：应当向上取整", steps="floor"),
        slip(
            "where the distance comes out even there is no further step: round up, do not add 1",
            "恰好整除时不必多走一步：应当向上取整，而不是加 1",
            steps="more",
        ),
        slip("steps are counted by an integer: round up", "步数是整数：应当向上取整", steps="exact"),
        slip("a clipped step has the length rate times bound", "被裁剪的一步，长度是学习率乘上限", steps="rate"),
        slip(
            "squares must add up to the square of the bound: divide by the root of W",
            "平方和不超过上限的平方：应当除以 W 的平方根",
            local="share",
        ),
        slip(
            "W contributions of this norm add up to more than the bound",
            "W 份这么长的贡献，平方和会超过上限的平方",
            local="same",
        ),
        slip(
            "a window is exchanged once: accumulation saves traffic as well",
            "一个窗口只交换一次：累积也节省通信",
            traffic="factor",
        ),
        slip("compression saves traffic as well", "压缩也节省通信", traffic="count"),
        slip(
            "this is how many times fewer; the share is one over it",
            "这是减少到几分之一的那个倍数；份额是它的倒数",
            traffic="inverse",
        ),
        slip(
            "this is the share that is saved; the share that is sent was asked for",
            "这是省下的份额；问的是发送的份额",
            traffic="less",
        ),
        slip(
            "only the noise is averaged away; the true gradient is in every micro-batch and keeps its norm",
            "平均掉的只是噪声；真实梯度每个微批次里都有，范数不变",
            shrink="all",
        ),
        slip(
            "this is larger than the bound: each process must stay below it, divide by the root of W",
            "这比上限还大：每个进程要更小，应当除以 W 的平方根",
            local="times",
        ),
        slip(
            "the number of processes does not matter: each sends for its own samples",
            "与进程数无关：每个进程只为自己的样本发送",
            traffic="processes",
        ),
        slip(
            "accumulation divides the traffic as well: the window is exchanged once for K micro-batches",
            "累积也要作除数：K 个微批次只交换一次",
            traffic="mixed",
        ),
        slip(
            "your factor is upside down: bound / norm",
            "系数颠倒了：应当是 上限 / 范数",
            turn="up",
        ),
    ),
)
