"""Top-k with a residual for each parameter."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.compare import same
from tightgrad_lab.exercises.load import StudentError
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip
from tightgrad_lab.exercises.words import Words

Steps = list[tuple[str, Tensor]]
PAIR = Words(
    "`send` must return two tensors of one dimension, positions and values; it returns {found}",
    "`send` 应当返回两个一维张量，即位置和值；现在返回 {found}",
)
CHANGES = Words(
    "`send`: it changes its argument, the gradient: work on a copy, the caller still needs the original",
    "`send` 改动了传进来的梯度：请在副本上计算，调用者还要用原来的数据",
)
PLACES = Words(
    "positions must be different integers from 0 to {last}; they are {found}",
    "位置应当是 0 到 {last} 之间互不相同的整数；现在是 {found}",
)


def cases(draw: Draw) -> list[Case]:
    """Four parameters, two of one shape, one of a single element; in half of the cases one gradient is not finite."""
    found: list[Case] = []
    for index in range(8):
        steps: Steps = []
        bad = draw.integer(1, 3)
        for step in range(5):
            for name, shape in (("a", (4, 5)), ("b", (4, 5)), ("c", (7,)), ("d", (1,))):
                gradient = draw.normal(*shape)
                if index % 2 and step == bad and name == "a":
                    gradient[2, 1] = draw.pick((math.nan, math.inf))
                steps.append((name, gradient))
        density = 0.19 if index == 0 else draw.pick((0.05, 0.1, 0.19, 0.3))  # 0.19 of 20 is not rounded down alike
        found.append((steps, density))
    return found


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Return each message as a dense vector, and which gradients were refused."""
    steps, density = case
    sender = function(density)
    sent, refused = [], []
    for name, gradient in steps:
        before = gradient.clone()
        try:
            answer = sender.send(name, gradient)
        except ValueError:
            if bool(gradient.isfinite().all()):
                raise
            refused.append(True)
            continue
        if not same(gradient, before, 0.0):
            raise StudentError(CHANGES)
        refused.append(False)
        sent.append(_dense(answer, gradient.numel()))
    return {"refused": refused, "sent": sent}


def _dense(answer: Any, size: int) -> Tensor:
    if isinstance(answer, tuple) and any(one is Ellipsis for one in answer):
        raise StudentError(words.STARTER)
    if not (
        isinstance(answer, tuple)
        and len(answer) == 2
        and all(isinstance(one, Tensor) and one.ndim == 1 for one in answer)
    ):
        raise StudentError(
            PAIR.of(
                found=type(answer).__name__ if not isinstance(answer, tuple) else [type(one).__name__ for one in answer]
            )
        )
    positions, values = answer
    places = positions.tolist()
    if (
        positions.is_floating_point()
        or len(set(places)) < len(places)
        or any(not 0 <= one < size for one in places)
        or len(places) != len(values)
    ):
        raise StudentError(PLACES.of(last=size - 1, found=places[:8]))
    dense = torch.zeros(size, dtype=torch.float64)
    dense[positions] = values.double()
    return dense


def right(
    steps: Steps,
    density: float,
    feedback: str = "full",
    by: str = "size",
    shared: bool = False,
    refuse: bool = True,
    k: str = "floor",
    chosen: str = "sum",
    values: str = "sum",
    late: bool = False,
) -> dict[str, Any]:
    """Return the answer."""
    residuals: dict[Any, Tensor] = {}
    sent, refused = [], []
    for name, gradient in steps:
        bad = not bool(gradient.isfinite().all())
        refused.append(bad and refuse)
        if bad and refuse and not late:
            continue
        key = gradient.shape if shared else name
        flat = gradient.reshape(-1)
        wanted = flat + (residuals.get(key, torch.zeros_like(flat)) if feedback != "none" else 0)
        counts = {
            "floor": int(density * flat.numel()),
            "ceil": math.ceil(density * flat.numel()),
            "round": round(density * flat.numel()),
        }
        count = int(density * flat.numel()) if k == "zero" else max(1, counts[k])
        base = wanted if chosen == "sum" else flat
        places = (base.abs() if by == "size" else base).topk(count).indices
        message = torch.zeros_like(wanted)
        message[places] = {"sum": wanted, "gradient": flat, "size": wanted.abs()}[values][places]
        rest = (flat if feedback == "gradient" else wanted).clone()
        if feedback != "all":
            rest[places] = 0
        residuals[key] = -rest if feedback == "minus" else rest
        if not (bad and refuse):
            sent.append(message)
    return {"refused": refused, "sent": sent}


EXAM = Exam(
    function="Sender",
    cases=cases,
    right=right,
    ask=ask,
    slips=(
        slip(
            "there is no feedback: choose from gradient plus residual",
            "没有误差反馈：要从梯度加残差里选",
            feedback="none",
        ),
        slip(
            "the residual keeps the rest of this gradient only; what was owed before is lost",
            "残差只留下本步梯度的余下部分，以前欠下的丢了",
            feedback="gradient",
        ),
        slip(
            "what was sent stays in the residual, and is sent again",
            "已经发出去的还留在残差里，又发了一遍",
            feedback="all",
        ),
        slip(
            "parameters of the same shape share a residual: keep it by name",
            "形状相同的参数共用了残差：应当按名称分开",
            shared=True,
        ),
        slip(
            "a gradient that is not finite is let in: it never leaves the residual. Raise ValueError before anything changes",
            "让 NaN 或无穷大进来了，它再也不会离开残差：应当在改动之前抛出 ValueError",
            refuse=False,
        ),
        slip("you chose the largest values; choose by magnitude", "你选的是数值最大的；应当按绝对值选", by="value"),
        slip(
            "k is 0 for small tensors, which are then never sent: send at least one element",
            "小张量的 k 成了 0，永远发不出去：至少要发一个元素",
            k="zero",
        ),
        slip(
            "k is rounded up; round down, but send at least one", "k 向上取整了；应当向下取整，但至少发一个", k="ceil"
        ),
        slip(
            "k is rounded to the nearest integer; round down, but send at least one",
            "k 四舍五入了；应当向下取整，但至少发一个",
            k="round",
        ),
        slip(
            "you choose by the gradient alone: choose from gradient plus residual, or what is owed never leaves",
            "你只按梯度来选：应当从梯度加残差里选，否则欠下的永远发不出去",
            chosen="gradient",
        ),
        slip(
            "you send the gradient's values: send those of gradient plus residual",
            "你发的是梯度的值：应当发梯度加残差的值",
            values="gradient",
        ),
        slip(
            "the values have lost their signs: choose by magnitude, but send the values themselves",
            "值丢了符号：按绝对值选，发的却应当是原来的值",
            values="size",
        ),
        slip(
            "the residual has the wrong sign: it is gradient plus residual, less what was sent",
            "残差的符号反了：应当是梯度加残差，再减去已发送的",
            feedback="minus",
        ),
        slip(
            "you refuse the gradient too late: it has reached the residual already. Check it first",
            "拒绝得太晚：它已经进了残差。应当先检查",
            late=True,
        ),
    ),
)
