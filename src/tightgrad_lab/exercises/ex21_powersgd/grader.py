"""PowerSGD over several steps on threads."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.comm import Comm, on_threads
from tightgrad_lab.exercises.load import StudentError
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip
from tightgrad_lab.exercises.words import Words

THREE = Words(
    "`step` must return three matrices: delivered, residual, Q; it returns {found}",
    "`step` 应当返回三个矩阵：送达的梯度、残差和 Q；现在返回 {found}",
)


def cases(draw: Draw) -> list[Case]:
    """Two or three ranks, three or four steps, ranks 1 to 3."""
    found: list[Case] = []
    for index in range(4):
        n, m, rank, world = draw.integer(5, 8), draw.integer(4, 7), draw.integer(1, 3), 2 + index % 2
        gradients = [[draw.normal(n, m) for _ in range(world)] for _ in range(draw.integer(3, 4))]
        found.append((gradients, draw.normal(m, rank)))
    return found


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Run all steps on every rank; count what was exchanged. Q counts up to the signs of its columns."""
    gradients, start = case

    def body(comm: Comm) -> dict[str, Any]:
        q, residual, delivered, residuals = start.clone(), torch.zeros_like(gradients[0][0]), [], []
        for row in gradients:
            answer = function(comm, row[comm.rank], residual, q)
            if isinstance(answer, tuple) and any(one is Ellipsis for one in answer):
                raise StudentError(words.STARTER)
            if not (isinstance(answer, tuple) and len(answer) == 3 and all(isinstance(one, Tensor) for one in answer)):
                raise StudentError(THREE.of(found=type(answer).__name__))
            now, residual, q = answer
            delivered.append(now)
            residuals.append(residual)
        numbers = sum(nbytes for _, nbytes in comm.calls) // 8
        return {"delivered": delivered, "residual": residuals, "Q": q @ q.T, "exchanged": numbers}

    ranks = on_threads(len(gradients[0]), body)
    everyone = {key: [one[key] for one in ranks] for key in ("delivered", "residual")}
    return everyone | {"Q": ranks[0]["Q"], "exchanged": ranks[0]["exchanged"]}


def right(
    gradients: list[list[Tensor]],
    start: Tensor,
    mean_p: str = "mean",
    mean_q: str = "mean",
    orthonormal: str = "after",
    feedback: str = "full",
    warm: bool = True,
    exchanged: str = "factors",
    second: str = "matrix",
    q: str = "plain",
    sign: float = 1.0,
) -> dict[str, Any]:
    """Return the answer of every rank."""
    world = len(gradients[0])
    residuals = [torch.zeros_like(one) for one in gradients[0]]
    qs = [start.clone() for _ in gradients[0]]
    delivered: list[list[Tensor]] = [[] for _ in gradients[0]]
    kept: list[list[Tensor]] = [[] for _ in gradients[0]]
    for row in gradients:
        matrices = [g + e for g, e in zip(row, residuals, strict=True)] if feedback != "none" else row
        ps = [m @ (q if warm else start) for m, q in zip(matrices, qs, strict=True)]
        ps = [torch.linalg.qr(p).Q for p in ps] if orthonormal in ("before", "twice") else ps
        ps = _together(ps, mean_p)
        ps = [torch.linalg.qr(p).Q for p in ps] if orthonormal in ("after", "twice") else ps
        ps = [p / p.norm(dim=0) for p in ps] if orthonormal == "columns" else ps
        own = [m.T @ p for m, p in zip(matrices if second == "matrix" else row, ps, strict=True)]
        qs = _together(own, mean_q)
        qs = [torch.linalg.qr(one).Q for one in qs] if q == "orthonormal" else qs
        found = [p @ q.T for p, q in zip(ps, qs, strict=True)]
        local = [p @ q.T for p, q in zip(ps, own, strict=True)]
        bases = {"full": matrices, "none": matrices, "gradient": row, "own": matrices}[feedback]
        taken = local if feedback == "own" else found
        residuals = [sign * (base - one) for base, one in zip(bases, taken, strict=True)]
        for rank in range(world):
            delivered[rank].append(found[rank])
            kept[rank].append(residuals[rank])
    (n, m), r = gradients[0][0].shape, start.shape[1]
    numbers = (
        len(gradients)
        * {"factors": (n + m) * r, "matrix": n * m, "more": n * m + m * r, "one": n * r, "other": m * r, "none": 0}[
            exchanged
        ]
    )
    return {"delivered": delivered, "residual": kept, "Q": qs[0] @ qs[0].T, "exchanged": numbers}


def _together(parts: list[Tensor], how: str) -> list[Tensor]:
    total = torch.stack(parts).sum(0)
    return parts if how == "own" else [total / (len(parts) if how == "mean" else 1) for _ in parts]


EXAM = Exam(
    function="step",
    cases=cases,
    right=right,
    ask=ask,
    seconds=30.0,
    slips=(
        slip(
            "there is no feedback: begin with gradient plus residual",
            "没有误差反馈：应当从梯度加残差开始",
            feedback="none",
        ),
        slip(
            "the residual is the gradient less what was delivered; what was owed before is lost",
            "残差只是本步梯度减去送达的；以前欠下的丢了",
            feedback="gradient",
        ),
        slip(
            "subtract what was delivered, with the averaged Q, and not your own share",
            "应当减去送达的梯度（用平均之后的 Q），而不是自己那一份",
            feedback="own",
        ),
        slip(
            "the columns of P have length 1 but are not orthogonal: `torch.linalg.qr(P).Q` makes them so",
            "P 的各列长度为 1，但彼此并不正交：应当用 `torch.linalg.qr(P).Q`",
            orthonormal="columns",
        ),
        slip(
            "P is not averaged: every process then has another P, and the product fits none",
            "P 没有取平均：各进程的 P 不同，乘积对谁都不合适",
            mean_p="own",
        ),
        slip(
            "Q is not averaged: the processes deliver different gradients",
            "Q 没有取平均：各进程送达的梯度不同",
            mean_q="own",
        ),
        slip(
            "all_reduce_ adds: divide Q by the number of processes",
            "all_reduce_ 做的是相加：Q 还要除以进程数",
            mean_q="sum",
        ),
        slip("the columns of P are not made orthonormal", "P 的各列没有化为标准正交", orthonormal="never"),
        slip(
            "P is made orthonormal before the average; do it afterwards",
            "P 在取平均之前就正交化了；应当放在之后",
            orthonormal="before",
        ),
        slip(
            "P is made orthonormal before the average; do it afterwards",
            "P 在取平均之前就正交化了；应当放在之后",
            orthonormal="twice",
        ),
        slip(
            "each step begins with the first q again; use the one that was returned last",
            "每一步又从最初的 q 开始；应当用上一步返回的 Q",
            warm=False,
        ),
        slip(
            "the whole matrix is exchanged: only P and Q may pass the link",
            "交换了整个矩阵：只许交换 P 和 Q",
            exchanged="matrix",
        ),
        slip(
            "the whole matrix is exchanged: only P and Q may pass the link",
            "交换了整个矩阵：只许交换 P 和 Q",
            exchanged="more",
        ),
        slip("only P is exchanged", "只交换了 P", exchanged="one"),
        slip("only Q is exchanged", "只交换了 Q", exchanged="other"),
        slip(
            "the residual has the wrong sign: M less what was delivered",
            "残差的符号反了：应当是 M 减去送达的",
            sign=-1.0,
        ),
        slip(
            "Q is formed from the gradient alone: use M, the residual included",
            "Q 只用了梯度：应当用 M，残差也在内",
            second="gradient",
        ),
        slip(
            "Q is made orthonormal, too: it then loses the lengths, which only Q carries. Only P needs it",
            "Q 也正交化了：长度信息只在 Q 里，这样就丢了。只有 P 需要",
            q="orthonormal",
        ),
    ),
)
