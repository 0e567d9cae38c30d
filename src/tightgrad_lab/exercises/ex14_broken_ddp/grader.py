"""One window of a DDP loop on two gloo processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad_lab.exercises.ex14_broken_ddp.processes import WORLD, on_two_processes
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip

Window = list[tuple[Tensor, Tensor]]


def cases(draw: Draw) -> list[Case]:
    """One start of the processes for three ragged windows, since starting them takes longest.

    The processes have different numbers of micro-batches, each the most once; neither has only one.
    """
    runs = []
    for counts in draw.shuffled([(2, 3), (3, 2), (4, 2)]):
        weights = (draw.normal(2, 3).tolist(), draw.normal(2).tolist())
        windows = []
        for rank in range(WORLD):
            sizes = [draw.pick((1, 2, 5, 16)) + 3 * rank for _ in range(counts[rank])]
            windows.append([(draw.normal(n, 3), torch.tensor([draw.integer(0, 1) for _ in range(n)])) for n in sizes])
        runs.append((weights, windows))
    return [(runs,)]


def model_of(weights: Any) -> nn.Linear:
    """Return the model in float64."""
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weights[0]))
        model.bias.copy_(torch.tensor(weights[1]))
    return model


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Run both ranks."""
    (runs,) = case
    ranks = on_two_processes(function, [(model_of(weights), windows) for weights, windows in runs])
    return {
        "gradients": [one["gradients"] for one in ranks[0]],
        "exchanges": [[one["exchanges"] for one in run] for run in zip(*ranks, strict=True)],
    }


def right(runs: list[Any], **flags: Any) -> dict[str, Any]:
    """Return the answer."""
    answers = [_window(weights, windows, **flags) for weights, windows in runs]
    return {key: [one[key] for one in answers] for key in answers[0]}


def _window(
    weights: Any,
    windows: list[Window],
    count: str = "all",
    world: bool = True,
    clear: str = "first",
    sync: str = "once",
    weight: str = "items",
) -> dict[str, Any]:
    """Return the gradients of rank 0, and how often both exchanged."""
    everything = sum(len(labels) for window in windows for _, labels in window)
    model = model_of(weights)
    totals, firsts = [], []
    for window in windows:
        total = [torch.ones_like(one) if clear == "never" else torch.zeros_like(one) for one in model.parameters()]
        own = sum(len(labels) for _, labels in window)
        for place, (inputs, labels) in enumerate(window):
            model.zero_grad()
            loss = functional.cross_entropy(model(inputs), labels)
            counts = {"all": everything, "own": own, "own times W": own / WORLD}
            share = len(labels) / counts[count] * (WORLD if world and count == "all" else 1)
            most = sum(map(len, windows)) / WORLD
            share = {"items": share, "K": 1 / len(window), "mean K": 1 / most, "none": 1.0}[weight]
            (loss * share).backward()
            before = [torch.zeros_like(one) if clear == "micro" else one for one in total]
            total = [
                old + one.grad for old, one in zip(before, model.parameters(), strict=True) if one.grad is not None
            ]
            if place == 0:
                firsts.append(total)
        totals.append(total)
    gradients = [(torch.stack(parts).mean(0)).tolist() for parts in zip(*totals, strict=True)]
    if sync == "never":
        gradients = [one.tolist() for one in totals[0]]
    if sync in ("first", "each"):  # what came after it stays as this process has it
        shared = [torch.stack(parts).mean(0) for parts in zip(*firsts, strict=True)]
        rest = [total - first for total, first in zip(totals[0], firsts[0], strict=True)]
        gradients = [(one + other).tolist() for one, other in zip(shared, rest, strict=True)]
    exchanges = {"once": [1, 1], "first": [1, 1], "each": [len(window) for window in windows], "never": [0, 0]}
    return {"gradients": gradients, "exchanges": exchanges[sync]}


BY_COUNT = (
    "this divides by the number of micro-batches, which may differ in size and in number",
    "这里除以了微批次数，而微批次的大小和个数都可能不同",
)
EXAM = Exam(
    function="window_gradient",
    cases=cases,
    right=right,
    ask=ask,
    tolerance=1e-5,
    seconds=45.0,
    slips=(
        slip(
            "every micro-batch exchanges gradients: DDP decides in the forward pass, so both passes belong inside no_sync",
            "每个微批次都交换了梯度：DDP 在前向传播时就决定了，所以前向和反向都要放进 no_sync",
            sync="each",
        ),
        slip(
            "DDP exchanges nothing: gradients are never exchanged unless the last micro-batch runs outside no_sync; your own all_reduce of gradients is not counted",
            "DDP 从来没有交换梯度：最后一个微批次要放在 no_sync 之外；自己用 all_reduce 交换的梯度不算",
            sync="never",
        ),
        slip(
            "the exchange comes with the first micro-batch: what later ones add stays on its own process; let the last one exchange",
            "第一个微批次就交换了：后面的微批次只加在本进程上；应当由最后一个微批次来交换",
            sync="first",
        ),
        slip(
            "your count covers this process only: with DDP's average every process then weighs the same, however few items it holds",
            "你只数了本进程的样本：DDP 平均之后，各进程的权重就都一样了，不管它有多少样本",
            count="own",
        ),
        slip(
            "you count this process only, and multiply by W: sum the count over the processes first",
            "你只数了本进程的样本，又乘了 W：应当先把样本数对各进程求和",
            count="own times W",
        ),
        slip(
            "the factor W is missing: DDP's average divides by the number of processes once more",
            "漏了系数 W：DDP 取平均，又多除了一次进程数",
            world=False,
        ),
        slip(
            "what was in .grad before is still in the sum: clear it once, before the window",
            "`.grad` 里原有的梯度还在和里：窗口开始之前要清零一次",
            clear="never",
        ),
        slip(
            "the gradients are cleared between the micro-batches: only the last one is left",
            "在微批次之间清零了：只剩最后一个微批次",
            clear="micro",
        ),
        slip(*BY_COUNT, weight="K"),
        slip(*BY_COUNT, weight="mean K"),
        slip("the losses are not weighted at all", "损失完全没有加权", weight="none"),
    ),
)
