"""8-bit codes with a scale for each block."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.load import StudentError
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip
from tightgrad_lab.exercises.words import Words

DTYPE = Words(
    "`decode` must return a float32 vector; it returns {found}", "`decode` 应当返回 float32 向量；现在返回 {found}"
)
PAIR = Words(
    "`encode` must return two tensors, codes and scales; it returns {found}",
    "`encode` 应当返回两个张量，即编码和缩放系数；现在返回 {found}",
)


def cases(draw: Draw) -> list[Case]:
    """Ragged last blocks, outliers in one block, a block of zeros, tiny values, a single element, nothing."""
    found: list[Case] = []
    for index in range(8):
        block = draw.pick((4, 8, 16))
        vector = draw.normal(block * draw.integer(2, 4) + (0 if index == 5 else draw.integer(1, block - 1))).float()
        vector[draw.integer(0, block - 1)] *= 1000.0
        if index in (2, 6):
            vector[block : 2 * block] = 0.0
        if index == 3:
            vector *= 1e-12
        found.append((without_ties(vector, block), block))
    return [*found, (draw.normal(1).float(), 4), (torch.zeros(0), 4), (torch.zeros(5), 4)]


def without_ties(vector: Tensor, block: int) -> Tensor:
    """Return the vector with no element halfway between two codes, where the last bit of a division would decide."""
    found = vector.clone()
    for rows in found.split(block):
        scale = rows.abs().max() / 127
        codes = rows / scale if scale > 0 else rows
        near = ((codes - codes.floor()) - 0.5).abs() < 1e-3
        rows[near] = (codes.floor() * scale)[near]
    return found


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Encode and decode; count what would be sent."""
    vector, block = case
    answer = function(vector, block)
    if isinstance(answer, tuple) and Ellipsis in [one for one in answer if not isinstance(one, Tensor)]:
        raise StudentError(words.STARTER)
    if not (isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(one, Tensor) for one in answer)):
        raise StudentError(PAIR.of(found=type(answer).__name__))
    codes, scales = answer
    decode = function.__globals__.get("decode")
    if decode is None:
        raise StudentError(words.MISSING.of(name="decode"))
    nbytes = sum(one.numel() * one.element_size() for one in answer)
    return {"codes": codes, "scales": scales, "decoded": decode(codes, scales, block), "bytes": nbytes}


def right(
    vector: Tensor,
    block: int,
    scale: str = "block",
    top: int = 127,
    rounding: str = "nearest",
    width: int = 1,
    zero: str = "zeros",
    last: str = "kept",
    scale_width: int = 4,
    kept: str = "scale",
    sign: str = "signed",
) -> dict[str, Any]:
    """Return the answer."""
    flat = vector.double()
    count = -(-len(flat) // block)
    padded = torch.cat([flat, torch.zeros(count * block - len(flat), dtype=flat.dtype)]).reshape(count, block)
    largest = padded.abs().amax(1) if count else torch.zeros(0, dtype=flat.dtype)
    if scale == "whole" and count:
        largest = largest.max().expand(count)
    if scale == "signed" and count:
        largest = padded.amax(1)
    scales = (largest / top).float()
    divisors = scales if zero == "nan" else torch.where(scales == 0, 1.0, scales)
    divisors = divisors + 1e-8 if zero == "constant" else divisors
    exact = padded.float() / divisors[:, None]
    rounded = {"nearest": exact.round(), "zero": exact.trunc(), "floor": exact.floor(), "up": exact.ceil()}[rounding]
    codes = (rounded if zero == "nan" else rounded.to(torch.int8)).reshape(-1)[: len(flat)].double()
    decoded = codes * scales.double().repeat_interleave(block)[: len(flat)]
    scales = {"scale": scales, "inverse": 1 / divisors, "largest": largest.float()}[kept]
    if scale_width == 2:
        scales = scales.half()
    if last == "padded":
        codes, decoded = (
            torch.cat([one, torch.zeros(count * block - len(flat), dtype=one.dtype)]) for one in (codes, decoded)
        )
    if sign == "unsigned":
        codes = codes % 256
    if last == "dropped":
        size = len(flat) // block * block
        codes, scales, decoded = codes[:size], scales[: size // block], decoded[:size]
    return {
        "codes": codes,
        "scales": scales,
        "decoded": decoded,
        "bytes": width * len(codes) + scale_width * len(scales),
    }


def kind_of_vector(function: Callable[..., Any], draw: Draw) -> Words | None:
    """Look at the dtype of what is decoded, which no comparison of numbers shows."""
    decoded = ask(function, cases(draw)[0])["decoded"]
    return None if decoded.dtype is torch.float32 else DTYPE.of(found=decoded.dtype)


EXAM = Exam(
    function="encode",
    cases=cases,
    right=right,
    ask=ask,
    more=kind_of_vector,
    tolerance=1e-5,
    together=2,
    slips=(
        slip(
            "one scale serves the whole vector: an outlier in one block rounds all others to zero",
            "整个向量共用一个缩放系数：一块里有异常值，其他块就全归零了",
            scale="whole",
        ),
        slip(
            "the largest value is not the largest magnitude: a block may be negative",
            "最大值不等于最大绝对值：一块里可能全是负数",
            scale="signed",
        ),
        slip(
            "divide by 127: with 128 the largest element becomes 128, which int8 does not hold",
            "应当除以 127：除以 128 时最大元素成了 128，int8 装不下",
            top=128,
        ),
        slip(
            "this divides by 255, for codes from 0 to 255; int8 goes from -127 to 127",
            "这里除以 255，那是 0 到 255 的编码；int8 用的是 -127 到 127",
            top=255,
        ),
        slip(
            "this cuts off towards zero: round to the nearest integer, or every element shrinks",
            "这是向零截断：应当四舍五入，否则每个元素都变小了",
            rounding="zero",
        ),
        slip("this rounds down: round to the nearest integer", "这是向下取整：应当四舍五入", rounding="floor"),
        slip(
            "the codes take 4 bytes each: store them as torch.int8", "每个编码占了 4 字节：应当存成 torch.int8", width=4
        ),
        slip(
            "the codes take 8 bytes each: store them as torch.int8", "每个编码占了 8 字节：应当存成 torch.int8", width=8
        ),
        slip(
            "the scales take 8 bytes each: store them as float32",
            "缩放系数占了 8 字节：应当存成 float32",
            scale_width=8,
        ),
        slip("a block of zeros is divided by zero and becomes NaN", "全零的块除以了零，变成 NaN", zero="nan"),
        slip("the last, shorter block is lost", "不满的最后一块丢了", last="dropped"),
        slip(
            "a constant is added to the scales, or bounds them: a block of small values then loses its digits. Treat only a scale of 0 apart",
            "给缩放系数加了一个常数，或者设了下限：数值很小的块就丢了精度。只需单独处理系数为 0 的块",
            zero="constant",
        ),
        slip(
            "the codes are as long as the padded blocks: cut them to the length of the vector",
            "编码和补齐之后的块一样长：应当截到向量的长度",
            last="padded",
        ),
        slip(
            "uint8 has no negative numbers: use torch.int8",
            "uint8 没有负数：应当用 torch.int8",
            sign="unsigned",
        ),
        slip(
            "these are the inverses of the scales",
            "这是缩放系数的倒数",
            kept="inverse",
        ),
        slip(
            "this is the largest magnitude; the scale is that divided by 127",
            "这是最大绝对值；缩放系数还要除以 127",
            kept="largest",
        ),
        slip(
            "the scales are fp16, which is too coarse for them and overflows: store them as float32",
            "缩放系数用了 fp16，太粗，还会溢出：应当存成 float32",
            scale_width=2,
        ),
    ),
)
