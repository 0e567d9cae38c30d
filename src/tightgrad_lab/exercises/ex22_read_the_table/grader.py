"""Difference and noise of two settings, and what a case moves."""

import math
from statistics import mean, median, pvariance, variance
from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Differences just within the noise and just outside, of either sign, with little noise and with much.

    No bound that is the same for all cases tells them apart. Every third case has few words for its tokens.
    """
    found: list[Case] = []
    for index in range(12):
        n, centre = draw.integer(3, 6), draw.real(70.0, 90.0, 1)
        scatter = (0.3, 1.0, 4.0)[index // 4]
        t = {3: 2.776, 4: 2.447, 5: 2.306, 6: 2.228}[n]
        plain, combined = ([round(centre + draw.signed(0.2, 1.0) * scatter, 2) for _ in range(n)] for _ in range(2))
        halfwidth = t * math.sqrt((variance(plain) + variance(combined)) / n)
        sign, share = ((1, 0.8), (1, 1.25), (-1, 0.8), (-1, 1.25))[index % 4]
        shift = sign * share * halfwidth - (mean(combined) - mean(plain))
        combined = [round(one + shift, 2) for one in combined]
        vocabulary, tokens = (
            (draw.integer(200, 400), 500) if index % 3 == 2 else (draw.integer(2, 20) * 1000, draw.integer(1, 19) * 100)
        )
        sd, least = draw.real(0.31, 1.5, 3), draw.real(0.41, 1.2, 3)
        if abs(8 * (sd / least) ** 2 % 1 - 0.5) > 0.49:
            sd += 0.013  # nearly an integer: rounding would decide
        if index == 0:  # exactly an integer, and equal is not larger
            sd, least = draw.pick((0.5, 1.0)), draw.pick((0.5, 1.0))
        sizes = (draw.integer(1, 50) * 10**5, draw.integer(1, 30) * 100, (2, 4, 8)[index % 3])
        found.append((plain, combined, t, sd, least, *sizes, vocabulary, draw.pick((64, 128, 256)), tokens))
    return draw.shuffled(found)


def right(
    plain: list[float],
    combined: list[float],
    t: float,
    sd: float,
    gap: float,
    parameters: int,
    steps: int,
    processes: int,
    vocabulary: int,
    width: int,
    tokens: int,
    order: str = "combined",
    spread: str = "sample",
    noise: str = "both",
    seen: str = "size",
    seeds: str = "both",
    ring: str = "two",
    itemsize: int = 4,
    rows: str = "least",
    middle: str = "mean",
    sides: float = 1.0,
) -> dict[str, Any]:
    """Return the answer."""
    centre = mean if middle == "mean" else median
    difference = (centre(combined) - centre(plain)) * (1 if order == "combined" else -1)
    each = variance if spread == "sample" else pvariance
    first, second = each(plain), each(combined)
    n = len(plain)
    halfwidth = (
        sides
        * t
        * {
            "both": math.sqrt((first + second) / n),
            "plain": math.sqrt(first / n),
            "seeds": math.sqrt(first + second),
            "added": (math.sqrt(first) + math.sqrt(second)) / math.sqrt(n),
            "second": math.sqrt(second / n),
        }[noise]
    )
    larger = {
        "size": abs(difference) > halfwidth,
        "sign": difference > halfwidth,
        "sd": abs(difference) > sd,
        "best": max(combined) > max(plain),
        "apart": max(combined) < min(plain) or max(plain) < min(combined),
    }[seen]
    exact = {"both": 8.0, "one": 4.0, "t": 2.0}[seeds if seeds in ("one", "t") else "both"] * (sd / gap) ** 2
    counts = {"floor": math.floor(exact), "exact": exact, "ceil": math.ceil(exact)}
    share = {
        "two": 2 * (processes - 1) / processes,
        "one": (processes - 1) / processes,
        "none": 1.0,
        "all": 2.0 * (processes - 1),
    }[ring]
    return {
        "difference": difference,
        "halfwidth": halfwidth,
        "seen": larger,
        "seeds": counts.get(seeds, math.floor(exact) + 1),
        "sent": share * itemsize * parameters * steps,
        "table": itemsize * vocabulary * width,
        "rows": {
            "least": min(tokens, vocabulary),
            "tokens": tokens,
            "all": vocabulary,
            "elements": min(tokens, vocabulary) * width,
        }[rows],
    }


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    together=2,
    slips=(
        slip("combined less plain was asked for", "问的是 combined 减 plain", order="plain"),
        slip(
            "divide the sum of squares by n - 1: the mean was estimated from the same seeds",
            "平方和应当除以 n-1：均值也是由这些种子估计的",
            spread="population",
        ),
        slip(
            "the difference has the noise of both settings, not of one", "差值带着两组的噪声，不是一组的", noise="plain"
        ),
        slip(
            "the difference has the noise of both settings, not of the second alone",
            "差值带着两组的噪声，不只是后一组的",
            noise="second",
        ),
        slip(
            "this is the scatter of single runs; a mean over n seeds scatters less, by the root of n",
            "这是单次运行的离散程度；n 个种子的均值要小，除以 n 的平方根",
            noise="seeds",
        ),
        slip(
            "standard deviations of independent parts do not add; variances do",
            "相互独立的部分，相加的不是标准差，而是方差",
            noise="added",
        ),
        slip("a loss is a difference as well: compare its size", "变差也是差别：应当比较绝对值", seen="sign"),
        slip(
            "compare with the half-width of this case, not with sd", "应当与本例的半宽比较，而不是与 sd 比较", seen="sd"
        ),
        slip("one lucky seed decides: compare the means", "只看了最好的一个种子：应当比较均值", seen="best"),
        slip(
            "runs of the two settings may overlap although their means differ by more than the half-width",
            "两组的单次结果可以有重叠，而均值之差仍然大于半宽",
            seen="apart",
        ),
        slip("rounded down, the difference is not yet larger", "向下取整时，差别还不够大", seeds="floor"),
        slip(
            "where the root gives an integer, the difference is equal and not yet larger: one seed more",
            "恰好解出整数时，差别只是相等，还不是大于：要再多一个种子",
            seeds="ceil",
        ),
        slip("seeds are counted by an integer", "种子数是整数", seeds="exact"),
        slip("both settings have noise: the 2 under the root is missing", "两组都有噪声：漏了根号下的 2", seeds="one"),
        slip("the factor 2 before sd is squared as well", "sd 前面的 2 也要平方", seeds="t"),
        slip("a ring has two rounds: the factor 2 is missing", "环形全归约有两轮：漏了系数 2", ring="one"),
        slip("a ring passes 2 (W-1)/W times the gradient", "环形全归约发送的是梯度的 2(W-1)/W 倍", ring="none"),
        slip("each round passes a piece, 1/W of the gradient", "每轮只传一段，即梯度的 1/W", ring="all"),
        slip("a float32 takes 4 bytes", "一个 float32 占 4 字节", itemsize=1),
        slip("there are no more rows than words", "行数不会超过词表", rows="tokens"),
        slip("a step touches only the rows of its own tokens", "一步只碰到自己的词元所在的行", rows="all"),
        slip(
            "this is the difference of the medians",
            "这是中位数之差",
            middle="median",
        ),
        slip(
            "this is the whole width; the half is asked for, which stands behind the plus-minus sign",
            "这是整个宽度；问的是半宽，即正负号后面的数",
            sides=2.0,
        ),
        slip(
            "rows were asked for, not their elements or bytes",
            "问的是行数，不是元素数或字节数",
            rows="elements",
        ),
    ),
)
