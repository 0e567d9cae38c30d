"""Adam's memory after one outlier."""

import math
from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Outliers that lead backwards and outliers that do not; some are below the bound."""
    found: list[Case] = []
    for index in range(12):
        beta1, beta2 = draw.pick((0.8, 0.85, 0.9, 0.95)), draw.pick((0.9, 0.95, 0.98, 0.99, 0.999))
        x = draw.real(1.5, 8.0, 1) if index % 4 == 3 else draw.real(20.0, 200.0, 1)
        if abs((1 - beta1) * (1 + x) - 1) < 0.05:
            x += 1.0  # u would be 0, and rounding would decide
        found.append((beta1, beta2, x, draw.real(1.1, 10.0, 1)))
    return found


def right(
    beta1: float,
    beta2: float,
    x: float,
    bound: float,
    betas: str = "own",
    squared: bool = True,
    root: bool = True,
    count: str = "all",
    least: str = "ratio",
    sign: float = -1.0,
    clip: str = "size",
    old: str = "both",
    clips: str = "both",
) -> dict[str, Any]:
    """Return the answer."""
    if betas == "swapped":
        beta1, beta2 = beta2, beta1
    if betas == "weights":
        beta1, beta2 = 1 - beta1, 1 - beta2
    mean, square, step = _after(beta1, beta2, sign * x, squared, root, old)
    exact = math.log((1 - beta1) * (1 + x)) / -math.log(beta1)
    whole = max(0, math.ceil(exact))
    counts = {
        "all": whole,
        "later": max(0, whole - 1),
        "more": whole + 1,
        "own": int(exact > 0),
        "x": max(0, math.ceil(math.log((1 - beta1) * x) / -math.log(beta1))),
    }
    limited = {"size": min(x, bound), "always": bound, "never": x}[clip]
    bounded, raw = (_after(beta1, beta2, sign * one, squared, root, old) for one in (limited, x))
    clipped = {
        "both": bounded[2],
        "mean": bounded[0] / math.sqrt(raw[1]),
        "square": raw[0] / math.sqrt(bounded[1]),
    }[clips]
    leasts = {"ratio": beta1 / (1 - beta1), "inverse": 1 / (1 - beta1), "flipped": (1 - beta1) / beta1}
    return {
        "mean": mean,
        "square": square,
        "step": step,
        "backwards": counts[count],
        "clipped": clipped,
        "least": leasts[least],
    }


def _after(
    beta1: float, beta2: float, gradient: float, squared: bool, root: bool, old: str
) -> tuple[float, float, float]:
    """Return both running means after one gradient, and the step."""
    mean = (beta1 if old != "mean" else 0.0) + (1 - beta1) * gradient
    square = (beta2 if old != "square" else 0.0) + (1 - beta2) * (gradient**2 if squared else abs(gradient))
    return mean, square, mean / (math.sqrt(square) if root else square)


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    slips=(
        slip("the outlier is -x: it pulls the mean down", "异常梯度是 -x：它把均值往下拉", sign=1.0),
        slip(
            "beta1 belongs to the mean, beta2 to the squares: they are swapped",
            "beta1 属于均值，beta2 属于平方：两者用反了",
            betas="swapped",
        ),
        slip(
            "the old mean has the weight beta and the new gradient 1 - beta: they are swapped",
            "旧均值的权重是 beta，新梯度的权重是 1 - beta：两者用反了",
            betas="weights",
        ),
        slip("q is the mean of the squared gradients", "q 是梯度平方的均值", squared=False),
        slip("Adam divides by the square root of q", "Adam 除以的是 q 的平方根", root=False),
        slip("the outlier's own step, t = 0, counts as well", "异常梯度自己那一步（t = 0）也要算", count="later"),
        slip("one step too many: u is no longer negative there", "多算了一步：那时 u 已经不为负", count="more"),
        slip("the formula has 1 + x: the mean falls from +1", "公式里是 1 + x：均值是从 +1 往下落的", count="x"),
        slip("an outlier smaller than the bound is not clipped", "比上限小的梯度不会被裁剪", clip="always"),
        slip("this is the unclipped step", "这是不裁剪时的步长", clip="never"),
        slip(
            "u is negative once (1 - beta1) x exceeds beta1", "(1 - beta1) x 超过 beta1 时，u 才为负", least="inverse"
        ),
        slip(
            "this is upside down: x must exceed beta1 / (1 - beta1)",
            "分子分母颠倒了：x 要超过 beta1 / (1 - beta1)",
            least="flipped",
        ),
        slip(
            "the old mean is left out: before the outlier it was 1, and beta1 of it remains",
            "漏了旧的均值：异常梯度来之前它是 1，还剩 beta1",
            old="mean",
        ),
        slip(
            "the old mean of the squares is left out: it was 1, and beta2 of it remains",
            "漏了旧的平方均值：它原来是 1，还剩 beta2",
            old="square",
        ),
        slip(
            "the clipped gradient enters q as well as u",
            "裁剪之后的梯度不仅进入 u，也进入 q",
            clips="mean",
        ),
        slip(
            "the clipped gradient enters u as well as q",
            "裁剪之后的梯度不仅进入 q，也进入 u",
            clips="square",
        ),
        slip(
            "only the outlier's own step is counted: u stays negative for some more, since each later gradient pulls it up by a part only",
            "只数了异常梯度自己那一步：之后每个梯度只把 u 拉回一部分，u 还会负一阵子",
            count="own",
        ),
    ),
)
