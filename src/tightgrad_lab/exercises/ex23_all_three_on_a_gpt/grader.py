"""A small GPT on threads, with the seconds of a modelled link."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad_lab.common.byte_model import ByteTransformer, loss, plays
from tightgrad_lab.exercises.comm import Comm, on_threads
from tightgrad_lab.exercises.model import Case, Draw, Exam, copied, slip
from tightgrad_lab.exercises.words import Words

WIDTH, LENGTH = 8, 13
BYTES_PER_SECOND = 10e6 / 8
FREE = 64
Steps = list[list[Tensor]]


def cases(draw: Draw) -> list[Case]:
    """Two and three ranks with ragged windows; the bound acts with two only."""
    found: list[Case] = []
    text = plays()
    for world in (2, 3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.integer(0, 10**6))
            model = ByteTransformer(WIDTH, 1).double()
        ranks = [
            [[_pieces(draw, text, draw.pick((1, 2, 6))) for _ in range(2)] for _ in range(3)] for _ in range(world)
        ]
        bound = draw.real(0.1, 0.4) if world == 2 else draw.real(4.0, 8.0)
        found.append((model, ranks, draw.pick((0.01, 0.02, 0.05)), bound, draw.real(0.1, 0.5)))
    return found


def _pieces(draw: Draw, text: Tensor, count: int) -> Tensor:
    starts = [draw.integer(0, len(text) - LENGTH - 1) for _ in range(count)]
    return torch.stack([text[start : start + LENGTH] for start in starts])


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Train on every rank; return how far the weights moved and the seconds of the link."""
    model, ranks, *settings = case
    world = len(ranks)

    def body(comm: Comm) -> dict[str, Any]:
        own = copy.deepcopy(model)
        norms = function(comm, own, ranks[comm.rank], *settings)
        return {"moved": _flat(own) - _flat(model), "norms": norms, "seconds": seconds_of(comm.calls, world)}

    found = on_threads(world, body)
    return found[0] | {"moved": [one["moved"] for one in found]}


def seconds_of(calls: list[tuple[str, int]], world: int) -> float:
    """Return what the exchanges take on the link, by the formulas of section 3.2."""
    shares = {"all_reduce": 2 * (world - 1) / world, "all_gather": world - 1, "broadcast": 1.0}
    return sum(shares[kind] * nbytes / BYTES_PER_SECOND for kind, nbytes in calls if nbytes > FREE)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def right(
    model: nn.Module,
    ranks: list[Steps],
    density: float,
    max_norm: float,
    rate: float,
    weight: str = "items",
    clip: str = "delivered",
    feedback: str = "full",
    send: str = "sparse",
    record: str = "before",
    sum_: str = "sum",
) -> dict[str, Any]:
    """Return the answer."""
    own, start, world = copy.deepcopy(model), _flat(model), len(ranks)
    residuals = [torch.zeros_like(start) for _ in ranks]
    norms = []
    k = max(1, int(density * len(start)))
    for step in range(len(ranks[0])):
        total = sum(len(pieces) for steps in ranks for pieces in steps[step])
        delivered = torch.zeros_like(start)
        for rank, steps in enumerate(ranks):
            local = sum(len(pieces) for pieces in steps[step])
            gradient = torch.zeros_like(start)
            for pieces in steps[step]:
                own.zero_grad()
                share = {
                    "items": len(pieces) / total,
                    "own": len(pieces) / local / world,
                    "K": 1 / len(steps[step]) / world,
                    "sum": len(pieces) / local,
                }
                (loss(own, pieces) * share[weight]).backward()
                gradient += torch.cat([p.grad.reshape(-1) for p in own.parameters() if p.grad is not None])
            if clip in ("local", "both"):
                gradient = gradient * min(1.0, max_norm / float(gradient.norm()))
            wanted = gradient + (residuals[rank] if feedback != "none" else 0)
            chosen = wanted.abs().topk(k).indices
            message = torch.zeros_like(wanted)
            message[chosen] = wanted[chosen].float().double()
            kept = {"gradient": gradient, "all": wanted + message}.get(feedback, wanted) - message
            if feedback == "emptied":
                kept[chosen] = 0.0
            residuals[rank] = kept.float().double() if feedback == "float32" else kept
            delivered += message / (world if sum_ == "mean" else 1)
        norms.append(float(delivered.norm()))
        factor = min(1.0, max_norm / norms[-1]) if clip in ("delivered", "both") else 1.0
        factor = max_norm / norms[-1] if clip == "stretched" else factor
        norms[-1] *= factor if record == "after" else 1.0
        with torch.no_grad():
            nn.utils.vector_to_parameters(_flat(own) - rate * factor * delivered, own.parameters())
    calls = {
        "sparse": [("all_gather", 8 * k)],
        "long": [("all_gather", 12 * k)],
        "longer": [("all_gather", 16 * k)],
        "dense": [("all_reduce", 8 * len(start))],
        "dense4": [("all_reduce", 4 * len(start))],
    }[send]
    seconds = len(norms) * seconds_of(calls, world)
    return {"moved": [_flat(own) - start for _ in ranks], "norms": norms, "seconds": seconds}


ROUNDED = (
    (
        "emptied",
        Words(
            "the residual is set to zero where something was sent: what float32 rounds off is lost; subtract what was sent",
            "发送过的位置，残差直接清零了：float32 舍入掉的部分就丢了；应当减去实际发送的值",
        ),
    ),
    (
        "float32",
        Words(
            "the residual is kept in float32: what it rounds off is lost; keep it in the dtype of the gradient",
            "残差用 float32 保存：舍入掉的部分就丢了；应当用梯度的数据类型保存",
        ),
    ),
)
NARROW = Words(
    "your program computes in float32 somewhere: the model and its gradients are float64, and only the values that are sent may be float32",
    "程序里有一处用 float32 计算：模型和梯度都是 float64，只有发送的值才可以是 float32",
)
NEARER = 100.0
"""An answer so many times nearer to that of a rounded residual than to the right one has rounded its residual."""
EXACT = 1e-10
"""Relative error that float64 never reaches here; a single rounding to float32 leaves a hundred times as much."""


def rounds(function: Callable[..., Any], draw: Draw) -> Words | None:
    """Say whether float32 rounds the residual or more, which is less than the tolerance of the comparison shows."""
    for case in cases(draw):
        found = ask(function, copied(case))["moved"][0]

        def far(case: Case = case, found: Tensor = found, **flags: Any) -> float:
            return float((right(*copied(case), **flags)["moved"][0] - found).norm())

        apart = far()
        for feedback, said in ROUNDED:
            if NEARER * far(feedback=feedback) < apart:
                return said
        if apart > EXACT * float(found.norm()):
            return NARROW
    return None


DENSE = (
    "the message is mostly zeros and is sent whole by all_reduce_: gather positions and values",
    "消息大半是零，却用 all_reduce_ 整个发送：应当只收集位置和值",
)
LONG = (
    "positions and values take more than 8 bytes together: int32 and float32",
    "位置和值合起来超过了 8 字节：应当用 int32 和 float32",
)
EXAM = Exam(
    function="train",
    cases=cases,
    right=right,
    ask=ask,
    tolerance=1e-4,
    more=rounds,
    together=2,
    seconds=45.0,
    slips=(
        slip(
            "your count covers this process only: weight by the pieces of all processes",
            "你只数了本进程的段数：应当按所有进程的段数加权",
            weight="own",
        ),
        slip(
            "micro-batches are weighted alike: weight by their pieces", "各微批次的权重相同：应当按段数加权", weight="K"
        ),
        slip("the processes' means are added and not averaged", "各进程的平均损失是相加，没有平均", weight="sum"),
        slip(
            "every process clips its own gradient before compression; clip what is delivered",
            "各进程在压缩之前裁剪了自己的梯度；应当裁剪送达的梯度",
            clip="local",
        ),
        slip(
            "the gradient is clipped twice, before compression and after delivery",
            "裁剪了两次：压缩之前一次，送达之后又一次",
            clip="both",
        ),
        slip("nothing is clipped", "没有裁剪", clip="none"),
        slip(
            "a delivered gradient below the bound is lengthened: the factor must never exceed 1",
            "送达的梯度没超过上限，却被拉长了：系数不能超过 1",
            clip="stretched",
        ),
        slip(
            "there is no feedback: add the residual before choosing",
            "没有误差反馈：选元素之前要加上残差",
            feedback="none",
        ),
        slip(
            "what was owed before is lost: subtract the message from gradient plus residual",
            "以前欠下的丢了：应当从梯度加残差里减去消息",
            feedback="gradient",
        ),
        slip("what was sent stays in the residual", "发送过的还留在残差里", feedback="all"),
        slip(*DENSE, send="dense"),
        slip(*DENSE, send="dense4"),
        slip(*LONG, send="long"),
        slip(*LONG, send="longer"),
        slip(
            "the messages are averaged: they are weighted by the pieces of all processes already, so add them",
            "消息又取了平均：它们已按所有进程的段数加权，应当相加",
            sum_="mean",
        ),
        slip(
            "the norm is recorded after the clip: record the one before it",
            "记录的是裁剪之后的范数：应当记录裁剪之前的",
            record="after",
        ),
    ),
)
