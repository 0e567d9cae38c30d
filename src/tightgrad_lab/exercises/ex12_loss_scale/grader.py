"""Accumulation in fp16 with a dynamic loss scale."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


@dataclass(frozen=True, repr=False)
class Backward:
    """Gives the gradient of one micro-batch in fp16; its own `exact` is not for students."""

    exact: Tensor

    def __repr__(self) -> str:
        return "backward"

    def __call__(self, scale: float) -> Tensor:
        """Return the gradient of `scale` times the loss."""
        return (self.exact * scale).half()


def cases(draw: Draw) -> list[Case]:
    """Scales that are too high at first; windows whose parts fit fp16 and whose sum does not; a scale near 1."""
    found: list[Case] = []
    for index in range(6):
        scale, interval = float(2 ** draw.integer(9, 12)), draw.integer(2, 3)
        windows = []
        for place in range(12):
            size = (2e-4, 1e-3)[place % 2]
            if place in (1, 5):
                size = 70000.0 / scale * 2  # overflows at this scale
            if place == 8:
                size = 15000.0 / scale  # each part fits, the sum of eight does not
            if index == 5 and place < 8:
                size, scale = 1e6, 4.0  # down to 1 and not below
            direction = draw.normal(5).sign()
            windows.append([Backward(size * direction * (1 + 0.2 * draw.normal(5).abs())) for _ in range(8)])
        found.append(
            (draw.normal(5, scale=0.01), windows, scale, interval, draw.real(0.006, 0.01, 4), draw.real(0.5, 2.0))
        )
    return found


def right(
    weights: Tensor,
    windows: list[list[Backward]],
    scale: float,
    interval: int,
    max_norm: float,
    rate: float,
    add: str = "wide",
    unscale: str = "first",
    skip: bool = True,
    grow: str = "interval",
    reset: bool = True,
    floor: float = 1.0,
    clip: bool = True,
    shrink: bool = True,
) -> dict[str, Any]:
    """Return the answer."""
    scales, skipped, good = [], [], 0
    for window in windows:
        scales.append(scale)
        parts = [one(scale) if add == "half" else one(scale).double() for one in window]
        if add == "good":
            parts = [one for one in parts if one.isfinite().all()] or [parts[0].new_zeros(parts[0].shape)]
        total = parts[0]
        for one in parts[1:]:
            total = total + one
        total = total.double() / (len(window) if add == "mean" else 1)
        finite = bool(total.isfinite().all())
        skipped.append(not finite)
        if not finite:
            scale = max(floor, scale / 2) if shrink else scale
            good = 0 if reset else good
            if skip:
                continue
        total = total / scales[-1] if unscale == "first" else total
        norm = float(total.norm())
        total = total * min(1.0, max_norm / norm) if clip and norm else total
        total = total / scales[-1] if unscale == "last" else total
        weights = weights - rate * total
        good += 1
        if (
            (grow in ("interval", "once") and good == interval)
            or (grow == "on" and good >= interval)
            or (grow == "each" and finite)
            or (grow == "more" and good > interval)
        ):
            scale, good = scale * 2, 0 if grow not in ("once", "on") else good
    return {"weights": weights, "scales": scales, "skipped": skipped}


EXAM = Exam(
    function="train",
    cases=cases,
    right=right,
    tolerance=1e-5,
    together=2,
    slips=(
        slip(
            "the micro-batches are added in fp16: the sum overflows although each part fits, and it is rounded",
            "微批次是用 fp16 相加的：每一份都放得下，和却溢出了，而且有舍入",
            add="half",
        ),
        slip(
            "the clip comes before unscaling: its bound is divided by the scale",
            "在还原之前裁剪：上限实际被除以了缩放倍数",
            unscale="last",
        ),
        slip("the gradients are never unscaled", "梯度从来没有还原", unscale="never"),
        slip(
            "a window that overflowed makes a step all the same: the weights are no longer finite",
            "溢出的窗口也照样更新了：权重不再是有限数",
            skip=False,
        ),
        slip("the scale is never doubled", "缩放倍数从不加倍", grow="never"),
        slip(
            "the scale is doubled after every good window, not after `interval` of them",
            "每个正常窗口之后都加倍了，而不是连续 interval 个之后",
            grow="each",
        ),
        slip("the scale is doubled one window too late", "缩放倍数加倍晚了一个窗口", grow="more"),
        slip("an overflow must begin the count of good windows anew", "溢出之后，正常窗口要重新计数", reset=False),
        slip("the scale must not fall below 1", "缩放倍数不能低于 1", floor=0.0),
        slip("the scale is not halved after an overflow", "溢出之后缩放倍数没有减半", shrink=False),
        slip("nothing is clipped", "没有裁剪", clip=False),
        slip(
            "the sum is divided by the number of micro-batches; the losses were weighted already",
            "又除以了微批次数；各损失已经加过权了",
            add="mean",
        ),
        slip(
            "the count goes on after a doubling: begin it anew, or the scale is doubled only once",
            "加倍之后还在接着计数：应当重新开始，否则只会加倍一次",
            grow="once",
        ),
        slip(
            "the count goes on after a doubling: begin it anew, or every further window doubles the scale",
            "加倍之后还在接着计数：应当重新开始，否则之后每个窗口都会加倍",
            grow="on",
        ),
        slip(
            "only the micro-batches that overflowed are left out: the whole window must be skipped, or its mean is another",
            "只丢掉了溢出的微批次：应当跳过整个窗口，否则梯度就不是这个窗口的了",
            add="good",
        ),
    ),
)
