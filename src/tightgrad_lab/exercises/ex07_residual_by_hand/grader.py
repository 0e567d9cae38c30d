"""Top-k with a residual over a few steps."""

from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip

Vector = list[float]


def cases(draw: Draw) -> list[Case]:
    """Six to nine numbers over three to five steps."""
    found: list[Case] = []
    for _ in range(10):
        size, k = draw.integer(6, 9), draw.integer(2, 3)
        found.append(([[draw.signed(0.01, 1.0, 6) for _ in range(size)] for _ in range(draw.integer(3, 5))], k))
    return found


def right(
    gradients: list[Vector],
    k: int,
    feedback: str = "full",
    by: str = "size",
    positions: bool = True,
    kept: str = "largest",
    turn: str = "up",
    other: str = "plain",
) -> dict[str, Any]:
    """Return the answer."""
    residual, sent = [0.0] * len(gradients[0]), []
    for gradient in gradients:
        wanted = [g + (e if feedback != "none" else 0.0) for g, e in zip(gradient, residual, strict=True)]
        message = _top(wanted, k, by, kept)
        owed = {
            "full": wanted,
            "none": wanted,
            "gradient": gradient,
            "grows": [e + w for e, w in zip(residual, wanted, strict=True)],
        }
        residual = [w - m for w, m in zip(owed.get(feedback, wanted), message, strict=True)]
        if feedback == "all":
            residual = wanted
        if feedback == "reversed":
            residual = [-e for e in residual]
        sent.append(message)
    plain = [_top(gradient, k, by, kept) for gradient in gradients] if other == "plain" else sent
    factor = 4 * len(residual) / ((8 if positions else 4) * k)
    return {
        "sent": sent,
        "residual": residual,
        "without": [sum(one) for one in zip(*plain, strict=True)],
        "factor": factor if turn == "up" else 1 / factor,
    }


def _top(vector: Vector, k: int, by: str, kept: str) -> Vector:
    order = sorted(range(len(vector)), key=lambda i: -abs(vector[i]) if by == "size" else -vector[i])
    chosen = order[:k] if kept == "largest" else order[-k:]
    return [x if i in chosen else 0.0 for i, x in enumerate(vector)]


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    slips=(
        slip(
            "there is no feedback: choose from gradient plus residual, not from the gradient alone",
            "没有误差反馈：要从梯度加残差里选，不能只看本步的梯度",
            feedback="none",
        ),
        slip(
            "your residual is the gradient less what was sent; what was owed before is lost. Subtract from gradient plus residual",
            "你的残差是本步梯度减去所发送的，以前欠下的丢了；应当从梯度加残差里减",
            feedback="gradient",
        ),
        slip(
            "what was sent stays in the residual, and will be sent again: subtract it",
            "已经发出去的还留在残差里，会重复发送：要减掉",
            feedback="all",
        ),
        slip("the old residual is counted twice", "旧的残差算了两次", feedback="grows"),
        slip("the residual has the wrong sign", "残差的符号反了", feedback="reversed"),
        slip(
            "you chose the largest values; choose by magnitude, negative ones count as well",
            "你选的是数值最大的；应当按绝对值选，负的也算",
            by="value",
        ),
        slip("you sent the smallest elements", "你发送的是最小的元素", kept="smallest"),
        slip(
            "positions cost 4 bytes each, too: a message takes 8 bytes for each element",
            "位置也要占 4 字节：每发一个元素要 8 字节",
            positions=False,
        ),
        slip(
            "your factor is upside down: bytes without compression over bytes with it",
            "倍数颠倒了：应当是不压缩的字节数除以压缩后的字节数",
            turn="down",
        ),
        slip(
            "this is the sum of what was sent with feedback; without it each step chooses from its own gradient",
            "这是有误差反馈时发送的总和；没有反馈时，每步只从本步梯度里选",
            other="sent",
        ),
    ),
)
