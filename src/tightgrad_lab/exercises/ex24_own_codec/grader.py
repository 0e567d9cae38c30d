"""A codec of 8-bit blocks: numbers, bytes, the conformance suite, and a training of two ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import tightgrad as tg
from tightgrad.core.types import GradSpec
from tightgrad_lab.exercises.ex18_eight_bit_blocks.grader import right as by_hand
from tightgrad_lab.exercises.ex18_eight_bit_blocks.grader import without_ties
from tightgrad_lab.exercises.ex24_own_codec.installed import installed
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip
from tightgrad_lab.exercises.words import Words

FAILS = Words(
    "the conformance check '{check}' fails: {reason}",
    "一致性测试“{check}”没有通过：{reason}",
)
NEEDS = Words(
    "the conformance suite needs hypothesis: pip install 'tightgrad[testing]'",
    "一致性测试需要 hypothesis：pip install 'tightgrad[testing]'",
)
ACCEPTS = Words(
    "a block of {block} elements is accepted; refuse it with ValueError",
    "接受了 {block} 个元素一块的设置；应当抛出 ValueError",
)
SETTING = Words(
    "`Blocks()` must have the setting block = 64; it has {found}", "`Blocks()` 的设置 block 应当是 64；现在是 {found}"
)
DTYPE = Words(
    "`decode` returns {found} for a spec of {right}: convert to `payload.spec.dtype`",
    "spec 的 dtype 是 {right}，`decode` 却返回 {found}：应当转换成 `payload.spec.dtype`",
)
TRAINS = Words(
    "two ranks that train with it end with a loss of {loss:.3g}, where they began with {first:.3g}",
    "两个进程用它训练，损失从 {first:.3g} 到 {loss:.3g}，没有下降",
)


def cases(draw: Draw) -> list[Case]:
    """Ragged lengths, an outlier, a block of zeros, small and large numbers, one element."""
    found: list[Case] = []
    for index in range(6):
        block = draw.pick((4, 16, 64))
        flat = draw.normal(block * draw.integer(1, 3) + draw.integer(1, block - 1)).float() * 10.0 ** draw.integer(
            -6, 6
        )
        flat[draw.integer(0, block - 1)] *= 500.0
        if index == 2:
            flat[:block] = 0.0
        found.append((without_ties(flat, block), block))
    return [*found, (draw.normal(1).float(), 4)]


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Encode and decode one vector."""
    flat, block = case
    codec = function(block=block)
    spec = GradSpec.of("weight", flat)
    payload = codec.encode(flat, spec, torch.Generator())
    if payload is Ellipsis:
        return {"bytes": ..., "decoded": ..., "granularity": ...}
    return {"bytes": payload.nbytes, "decoded": codec.decode(payload), "granularity": codec.granularity}


def right(flat: Tensor, block: int, granularity: str = "block", **flags: Any) -> dict[str, Any]:
    """Return the answer: that of exercise 18."""
    answer = by_hand(flat, block, **flags)
    return {
        "bytes": answer["bytes"],
        "decoded": answer["decoded"],
        "granularity": block if granularity == "block" else 1,
    }


def conforms(function: Any, draw: Draw) -> Words | None:
    """Run the conformance suite, then train."""
    for block in (0, -3):
        try:
            function(block=block)
        except (ValueError, tg.ConfigError):
            continue
        return ACCEPTS.of(block=block)
    if getattr(function(), "block", None) != 64:
        return SETTING.of(found=getattr(function(), "block", None))
    with installed(function):
        for name, run in _checks(function):
            try:
                run()
            except AssertionError as error:
                return FAILS.of(
                    check=name.partition("-")[0].replace("_", " "), reason=" ".join(str(error).split())[:300] or "-"
                )
            except ModuleNotFoundError as error:
                if error.name != "hypothesis":
                    raise
                return NEEDS
        first, loss = _trained(function())
    for dtype in (torch.float64, torch.bfloat16):
        flat = torch.arange(-3.0, 4.0)
        decoded = function().decode(function().encode(flat, GradSpec("weight", (7,), 7, dtype), torch.Generator()))
        if decoded.dtype is not dtype:
            return DTYPE.of(found=decoded.dtype, right=dtype)
    return None if loss < first / 2 else TRAINS.of(first=first, loss=loss)


def _checks(function: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    try:
        from tightgrad.testing import CodecTests
    except ModuleNotFoundError as error:
        reason = error

        def missing() -> None:
            raise reason

        yield "hypothesis", missing
        return
    suite = type("StudentTests", (CodecTests,), {"codecs": (function(),)})()
    suite._check_methods()
    for test in (CodecTests.test_codec, CodecTests.test_claims, CodecTests.test_with_reducers):
        yield from test.cases(suite)  # type: ignore[attr-defined]


def _trained(codec: Any) -> tuple[float, float]:
    """Return the first and the last loss of two ranks."""
    plan = tg.Plan(compress=tg.Compress(codec, feedback=tg.ErrorFeedback()))
    inputs = torch.randn(20, 16, 8, generator=torch.Generator().manual_seed(0))

    def train(collective: Any) -> list[float]:
        model = torch.nn.Linear(8, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)
        losses = []
        for window in pipe.windows(inputs):
            for batch in window:
                loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
                pipe.backward(loss)
                losses.append(loss.item())
            pipe.step()
        pipe.close()
        return losses

    losses = tg.collectives.run_threaded(2, train)[0]
    return losses[0], losses[-1]


EXAM = Exam(
    function="Blocks",
    cases=cases,
    right=right,
    ask=ask,
    tolerance=1e-5,
    together=2,
    without=("IntBlock", "IntTensor", "codecs", "attach"),
    more=conforms,
    seconds=50.0,
    slips=(
        slip(
            "one scale serves the whole tensor: an outlier rounds all others to zero",
            "整个张量共用一个缩放系数：有一个异常值，其他元素就全归零了",
            scale="whole",
        ),
        slip(
            "divide by 127: with 128 the largest element becomes 128, which int8 does not hold",
            "应当除以 127：除以 128 时最大元素成了 128，int8 装不下",
            top=128,
        ),
        slip("this cuts off towards zero: round to the nearest integer", "这是向零截断：应当四舍五入", rounding="zero"),
        slip(
            "the largest value is not the largest magnitude: a block may be negative",
            "最大值不等于最大绝对值：一块里可能全是负数",
            scale="signed",
        ),
        slip(
            "the codes take 4 bytes each: send them as torch.int8", "每个编码占了 4 字节：应当发送 torch.int8", width=4
        ),
        slip(
            "the granularity is 1: the library may cut a block in two, and each half gets another scale; return `block`",
            "granularity 是 1：库会把一块切成两半，两半的缩放系数就不同了；应当返回 `block`",
            granularity="one",
        ),
    ),
)
