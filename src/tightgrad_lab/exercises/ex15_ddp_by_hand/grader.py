"""Data parallelism by hand on threads: weights, counts and calls."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad_lab.exercises.comm import Comm, on_threads
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip

Window = list[tuple[Tensor, Tensor]]


def cases(draw: Draw) -> list[Case]:
    """Two or three ranks with weights of their own and ragged windows; one rank is idle in one window."""
    found: list[Case] = []
    for index in range(3):
        world = 2 + index % 2
        models = []
        for _ in range(world):
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
            for parameter in model.parameters():
                parameter.data = draw.normal(*parameter.shape)
            models.append(model)
        windows: list[list[Window]] = []
        for place in range(2):
            row = [[_batch(draw, draw.pick((1, 2, 7, 16))) for _ in range(draw.integer(1, 3))] for _ in range(world)]
            if place == 1:
                row[draw.integer(0, world - 1)] = []
            windows.append(row)
        found.append((models, windows))
    return found


def _batch(draw: Draw, size: int) -> tuple[Tensor, Tensor]:
    return draw.normal(size, 3), draw.normal(size, 1)


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Run every rank through both windows."""
    models, windows = case

    def body(comm: Comm) -> dict[str, Any]:
        model = models[comm.rank]
        hand = function(model, comm)
        totals, gradients, quiet, finishing = [], [], True, []
        for row in windows:
            before = len(comm.calls)
            for inputs, targets in row[comm.rank]:
                hand.backward(functional.mse_loss(model(inputs), targets), len(inputs))
            quiet = quiet and len(comm.calls) == before
            before = len(comm.calls)
            totals.append(hand.finish())
            finishing.append(max(2, len(comm.calls) - before))
            gradients.append([None if one.grad is None else one.grad.clone() for one in model.parameters()])
        return {"totals": totals, "gradients": gradients, "quiet": quiet, "calls": max(finishing)}

    ranks = on_threads(len(models), body)
    return ranks[0] | {"gradients": [one["gradients"] for one in ranks]}


def right(
    models: list[nn.Module],
    windows: list[list[Window]],
    weight: str = "items",
    broadcast: bool = True,
    calls: int = 2,
    quiet: bool = True,
    exchange: bool = True,
    clear: str = "window",
    weights: str = "first",
    total: str = "all",
) -> dict[str, Any]:
    """Return the answer of every rank."""
    own = [copy.deepcopy(models[0] if broadcast else one) for one in models]
    if weights == "mean":
        for group in zip(*(one.parameters() for one in own), strict=True):
            mean = torch.stack([one.detach() for one in group]).mean(0)
            for one in group:
                one.data = mean.clone()
    left = [[torch.zeros_like(parameter) for parameter in one.parameters()] for one in own]
    totals, gradients = [], []
    for row in windows:
        everything = sum(len(inputs) for window in row for inputs, _ in window)
        sums = []
        for rank, window in enumerate(row):
            local = sum(len(inputs) for inputs, _ in window)
            cleared = clear == "window" or (clear == "busy" and window)
            grads = [torch.zeros_like(one) if cleared else one for one in left[rank]]
            grads = [one / everything for one in grads] if clear in ("divided", "busy") else grads
            for inputs, targets in window:
                shares = {
                    "items": len(inputs) / everything,
                    "own": len(inputs) / local / len(row),
                    "K": 1 / len(window) / len(row),
                    "sum": float(len(inputs)),
                    "mean": 1.0 / everything,
                    "twice": len(inputs) / everything / len(row),
                    "none": 1.0 / len(row),
                }
                own[rank].zero_grad()
                (functional.mse_loss(own[rank](inputs), targets) * shares[weight]).backward()
                parameters = list(own[rank].parameters())
                grads = [one + p.grad for one, p in zip(grads, parameters, strict=True) if p.grad is not None]
            sums.append(grads)
        whole = [torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)]
        found = [whole if exchange else one for one in sums]
        left = [[one.clone() for one in grads] for grads in found]
        gradients.append(found)
        totals.append({"all": everything, "own": sum(len(inputs) for inputs, _ in row[0])}[total])
    by_rank = [[gradients[place][rank] for place in range(len(windows))] for rank in range(len(models))]
    return {"totals": totals, "gradients": by_rank, "quiet": quiet, "calls": calls}


EXAM = Exam(
    function="ByHand",
    cases=cases,
    right=right,
    ask=ask,
    changes=(0,),
    together=2,
    seconds=30.0,
    slips=(
        slip(
            "the processes keep weights of their own: broadcast those of process 0 first",
            "各进程用的是自己的权重：应当先广播进程 0 的权重",
            broadcast=False,
        ),
        slip(
            "your count covers this process only; add up the items of all processes",
            "你只数了本进程的样本；要把所有进程的样本数相加",
            weight="own",
        ),
        slip("micro-batches are weighted alike: weight by items", "各微批次的权重相同：应当按样本数加权", weight="K"),
        slip("the losses are not weighted by their items", "损失没有按样本数加权", weight="none"),
        slip(
            "this is the gradient of the sum; divide by the number of all items",
            "这是和的梯度，还要除以全部样本数",
            weight="sum",
        ),
        slip(
            "you divide by the number of processes as well: the sum over processes needs only the number of items",
            "你又除以了进程数：各进程相加之后，只需除以样本总数",
            weight="twice",
        ),
        slip("the processes never exchange their gradients", "各进程从来没有交换梯度", exchange=False),
        slip("the gradients of the last window are still in the sum", "上一个窗口的梯度还在和里", clear="never"),
        slip(
            "you exchange every parameter by itself: pack all gradients into one flat tensor",
            "每个参数单独交换了一次：应当把全部梯度装进一个展平的张量",
            calls=4,
        ),
        slip(
            "you exchange every parameter by itself, and the count: pack all into one flat tensor",
            "每个参数和样本数各交换了一次：应当全部装进一个展平的张量",
            calls=5,
        ),
        slip(
            "`backward` communicates: exchange once, in `finish`",
            "`backward` 里做了通信：只应在 `finish` 里交换一次",
            quiet=False,
        ),
        slip("`finish` returns the items of this process only", "`finish` 只返回了本进程的样本数", total="own"),
        slip(
            "each loss is a mean over its items: multiply it by their number before you divide by the number of all",
            "每个损失是本微批次的平均：先乘以它的样本数，再除以样本总数",
            weight="mean",
        ),
        slip(
            "the mean that the last window left in .grad is still in the sum: clear it when a new window begins",
            "上一个窗口留在 .grad 里的平均还在和里：新窗口开始时要清零",
            clear="divided",
        ),
        slip(
            "the processes begin with the mean of all weights; those of process 0 were asked for",
            "各进程从所有权重的平均开始；题目要求用进程 0 的权重",
            broadcast=False,
            weights="mean",
        ),
        slip(
            "a process without micro-batches still holds the mean of the last window in .grad: clear it there as well",
            "没有微批次的进程，.grad 里还留着上一个窗口的平均：它那里也要清零",
            clear="busy",
        ),
    ),
)
