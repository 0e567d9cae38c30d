"""The gradient of a ragged window, one micro-batch at a time."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad_lab.exercises.compare import unwrapped
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip
from tightgrad_lab.exercises.words import Words

Window = list[tuple[Tensor, Tensor]]
TOGETHER = Words(
    "{rows} rows were in the model at once, and the largest micro-batch has {most}: pass one micro-batch at a time",
    "有一次把 {rows} 行同时送进了模型，而最大的微批次只有 {most} 行：每次只能送一个微批次",
)


def cases(draw: Draw) -> list[Case]:
    """Ragged windows; some micro-batches are masked wholly, one window is, and .grad holds something old."""
    found: list[Case] = []
    for index in range(8):
        model = nn.Linear(3, 4).double()
        for parameter in model.parameters():
            parameter.data = draw.normal(*parameter.shape)
        window: Window = []
        for place, size in enumerate(draw.shuffled((16, 2, 9, 1))):
            labels = torch.tensor([draw.integer(0, 3) for _ in range(size)])
            labels[[draw.integer(0, 2) == 0 for _ in range(size)]] = -100
            labels[0] = draw.integer(0, 3)
            if (index in (2, 3) and place == 1) or index == 6:
                labels[:] = -100
            window.append((draw.normal(size, 3), labels))
        found.append((model, window, mean_loss))
    return found


def mean_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy over the labels that count; NaN if none does."""
    return functional.cross_entropy(scores, labels, ignore_index=-100)


def leftover(parameter: nn.Parameter) -> Tensor | None:
    """Return what an earlier window left in .grad: something or nothing, the same for the same parameter."""
    values = parameter.detach()
    return 1 + values if float(values.reshape(-1)[0]) > 0 else None


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Look at the model's gradients after the call."""
    model, window, loss_function = case
    for parameter in model.parameters():
        parameter.grad = leftover(parameter)
    loss = function(model, window, loss_function)
    return {"gradients": [parameter.grad for parameter in model.parameters()], "loss": loss}


def right(
    model: nn.Module,
    window: Window,
    loss_function: Any,
    weight: str = "labels",
    clear: bool = True,
    masked: bool = True,
    returned: str = "mean",
    empty: bool = True,
) -> dict[str, Any]:
    """Return the answer."""
    counts = [int((labels != -100).sum()) for _, labels in window]
    items, rows = sum(counts), sum(len(labels) for _, labels in window)
    before = [leftover(parameter) for parameter in model.parameters()]
    total = [
        torch.zeros_like(p) if clear or old is None else old for p, old in zip(model.parameters(), before, strict=True)
    ]
    losses, weighted = [], 0.0
    for (inputs, labels), count in zip(window, counts, strict=True):
        if count == 0 and masked:
            continue
        shares = {
            "labels": count / max(items, 1),
            "K": 1 / len(window),
            "padding": len(labels) / rows,
            "none": 1.0,
            "sum": float(count),
        }
        own = copy.deepcopy(model)
        own.zero_grad()
        loss = mean_loss(own(inputs), labels)
        (loss * shares[weight]).backward()
        total = [one + (0 if p.grad is None else p.grad) for one, p in zip(total, own.parameters(), strict=True)]
        losses.append(loss.item())
        weighted += losses[-1] * shares[weight]
    if not items and not empty:
        return {"gradients": [None for _ in total], "loss": 0.0}
    plain = sum(losses) / len(losses) if losses else 0.0
    return {
        "gradients": total,
        "loss": {"mean": weighted, "plain": plain, "sum": sum(losses), "last": (losses or [0.0])[-1]}[returned],
    }


def one_at_a_time(function: Callable[..., Any], draw: Draw) -> Words | None:
    """Count the rows in the model, and look at the kind of the loss."""
    model, window, loss_function = cases(draw)[0]
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    loss = function(model, window, loss_function)
    most = max(len(labels) for _, labels in window)
    return TOGETHER.of(rows=max(seen), most=most) if max(seen, default=0) > most else unwrapped(loss)


EXAM = Exam(
    function="accumulate",
    cases=cases,
    right=right,
    ask=ask,
    changes=(0,),
    more=one_at_a_time,
    slips=(
        slip(
            "dividing by the number of micro-batches is the mean of means: weight each by the labels that count",
            "除以微批次数，得到的是均值的均值：每个微批次要按有效标签数加权",
            weight="K",
        ),
        slip(
            "padding is counted: weight by the labels that are not -100",
            "填充也被数进去了：应按不等于 -100 的标签数加权",
            weight="padding",
        ),
        slip("the micro-batches' means are added without weights", "各微批次的平均损失没有加权就相加了", weight="none"),
        slip(
            "this is the sum over labels; divide by their number in the window",
            "这是对标签的和，还要除以窗口的有效标签数",
            weight="sum",
        ),
        slip("what was in .grad before is still in the sum", "`.grad` 里原有的梯度还留在和里", clear=False),
        slip(
            "where no label of the window counts, .grad stays None: give it zeros",
            "整个窗口没有一个有效标签时，`.grad` 还是 None：应当置为零",
            empty=False,
        ),
        slip(
            "a micro-batch without labels makes everything NaN: zero times NaN is NaN, so leave it out",
            "没有有效标签的微批次把一切都变成了 NaN：零乘 NaN 还是 NaN，应当跳过它",
            masked=False,
        ),
        slip(
            "the loss you return is the plain mean over micro-batches; weight it as the gradient",
            "返回的损失只是对微批次取平均；应当与梯度一样加权",
            returned="plain",
        ),
        slip(
            "the loss you return is the sum of the micro-batches' means",
            "返回的损失是各微批次平均损失之和",
            returned="sum",
        ),
        slip("the loss you return is that of the last micro-batch", "返回的损失只是最后一个微批次的", returned="last"),
    ),
)
