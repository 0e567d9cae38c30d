from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Codec
from tightgrad.core.types import Payload, TensorLayout
from tightgrad.core.wire import checked_tensors


@dataclass(frozen=True)
class Blocks(Codec):
    """[[Sends each element as an int8, with a float32 scale for each block.||每个元素发送一个 int8，每块一个 float32 缩放系数。]]"""

    block: int = 64

    card: ClassVar[MethodCard] = MethodCard(
        id="my_blocks",
        kind="codec",
        summary="8-bit blocks",
        scope="block",
        reference="exercise 24",
        use_when="the link is up to four times too slow",
        avoid_when="the link is slower than that",
        reducer="two_shot",
    )

    def layout(self, spec):
        return ...

    def encode(self, flat, spec, generator):
        return ...

    def decode(self, payload):
        return ...
