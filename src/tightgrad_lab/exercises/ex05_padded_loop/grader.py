"""An accumulation loop over padded batches with a short last window."""

import torch
from torch import Tensor

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip

VOCABULARY = 5


def cases(draw: Draw) -> list[Case]:
    """Padded batches; the last window is short in most cases."""
    found: list[Case] = []
    for index in range(6):
        micro_batches = draw.integer(2, 4)
        count = 2 * micro_batches + (draw.integer(1, micro_batches - 1) if index % 3 else 0)
        batches = []
        for _ in range(count):
            size, kept = draw.integer(6, 12), draw.pick((1, 2, 5))
            tokens, labels = (torch.tensor([draw.integer(0, VOCABULARY - 1) for _ in range(size)]) for _ in range(2))
            labels[kept:] = -100
            batches.append((tokens, labels))
        found.append((batches, VOCABULARY, micro_batches, draw.real(0.5, 2.0)))
    return found


def right(
    batches: list[tuple[Tensor, Tensor]],
    vocabulary: int,
    micro_batches: int,
    rate: float,
    weight: str = "labels",
    last: str = "kept",
    clear: str = "window",
    drop: str = "padding",
    step: str = "window",
) -> Tensor:
    """Return the table after one epoch, by formulas and not by autograd."""
    table = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
    total = torch.zeros_like(table)
    for start in range(0, len(batches), micro_batches):
        window = batches[start : start + micro_batches]
        if len(window) < micro_batches and last == "dropped":
            break
        items = sum(int(_counted(labels, drop).sum()) for _, labels in window)
        everything = sum(labels.numel() for _, labels in window)
        if clear == "window":
            total = torch.zeros_like(table)
        for tokens, labels in window:
            own = int((labels != -100).sum())
            shares = {
                "labels": own / items,
                "K": 1 / micro_batches,
                "window": 1 / len(window),
                "padding": len(labels) / everything,
                "sum": float(own),
                "none": 1.0,
                "epoch": own / sum(int((y != -100).sum()) for _, y in batches),
                "twice": own / items / len(window),
                "tokens": own / everything,
            }
            if clear == "micro":
                total = torch.zeros_like(table)
            total = total + shares[weight] * _mean_gradient(table, tokens, labels)
            if step == "micro":
                table = table - rate * total
        if step == "window":
            table = table - rate * total
    return table


def _counted(labels: Tensor, drop: str) -> Tensor:
    return labels != -100 if drop == "padding" else labels > 0


def _mean_gradient(table: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean cross entropy over the labels that count."""
    chosen = labels != -100
    rows, targets = tokens[chosen], labels[chosen]
    slopes = torch.softmax(table[rows], 1) - torch.eye(len(table), dtype=table.dtype)[targets]
    return torch.zeros_like(table).index_add(0, rows, slopes) / len(rows)


EXAM = Exam(
    function="train",
    cases=cases,
    right=right,
    slips=(
        slip(
            "dividing by K weights micro-batches and not labels: multiply each mean loss by its share of the window's labels",
            "除以 K 是按微批次加权，不是按标签：每个平均损失应当乘以它在窗口有效标签中的份额",
            weight="K",
        ),
        slip(
            "this is the mean of the micro-batches' means: weight each by the labels that count",
            "这是各微批次均值的均值：每个要按有效标签数加权",
            weight="window",
        ),
        slip(
            "padding is counted: labels of -100 do not enter the loss and must not enter the weight",
            "填充也被数进去了：标签 -100 不进入损失，也不能进入权重",
            weight="padding",
        ),
        slip(
            "you divide by all labels of the window, padding included",
            "你除以了窗口的全部标签数，把填充也算在内",
            weight="tokens",
        ),
        slip(
            "this is the gradient of the sum over labels; divide by their number",
            "这是对标签求和的梯度，还要除以标签数",
            weight="sum",
        ),
        slip(
            "the means of the micro-batches are added and not divided",
            "各微批次的平均损失只是相加，没有加权",
            weight="none",
        ),
        slip(
            "you divide by the labels of the whole epoch: each window is a mean of its own",
            "你除以了整个轮次的有效标签数：每个窗口各自取平均",
            weight="epoch",
        ),
        slip(
            "you divide twice: the shares of a window add up to 1 already, do not divide by the micro-batches as well",
            "除了两次：一个窗口里各份额之和已经是 1，不要再除以微批次数",
            weight="twice",
        ),
        slip("the last window makes no step because it is not full", "最后一个窗口不满，没有更新", last="dropped"),
        slip(
            "the gradients of earlier windows stay in the sum: clear them once in every window",
            "以前窗口的梯度留在了和里：每个窗口要清零一次",
            clear="never",
        ),
        slip(
            "the gradients are cleared between the micro-batches: only the last one is left",
            "在微批次之间清零了：只剩下最后一个微批次的梯度",
            clear="micro",
        ),
        slip(
            "every micro-batch makes a step: step once, after the last micro-batch of the window",
            "每个微批次都更新了一次：应当在窗口的最后一个微批次之后更新一次",
            step="micro",
        ),
        slip(
            "the token 0 is a label like any other: only -100 is padding",
            "词元 0 也是普通标签：只有 -100 才是填充",
            drop="zero",
        ),
    ),
)
