"""A codec for each part of training: bits, density or method change at given steps."""

from dataclasses import dataclass
from typing import ClassVar

from tightgrad.codecs.bits.choice import Choice, check_codec
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec


@dataclass(frozen=True)
class ByStep(Choice):
    """Changes the codec at given numbers of applied steps.

    Args:
        stages: pairs of a first step and a codec, ascending; the first one starts at step 0.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.ByStep(((0, tg.codecs.IntBlock(8)), (1000, tg.codecs.IntBlock(4))))
        >>> x = torch.ones(1024)
        >>> [codec.payload_nbytes(GradSpec.of("weight", x, step=step)) for step in (0, 999, 1000)]
        [1040, 1040, 528]
    """

    stages: tuple[tuple[int, Codec], ...]

    card: ClassVar[MethodCard] = MethodCard(
        id="by_step",
        kind="codec",
        summary="a codec for each part of training",
        scope="tensor",
        contraction="the smallest of all",
        reducer="gather",
        reference="TightGrad",
        use_when="the first steps need more bits than the rest",
        avoid_when="only a density changes; use density_warmup instead",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        for stage in self.stages:
            if len(stage) != 2:
                raise ConfigError(f"stages holds {stage!r}; each must be a pair such as (1000, IntBlock(4)).")
            check_integer("a stage's first step", stage[0], low=0)
            check_codec(f"the codec from step {stage[0]}", stage[1])
        starts = [start for start, _ in self.stages]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise ConfigError(f"stages start at the steps {starts}; they must ascend from 0.")

    @property
    def choices(self) -> tuple[Codec, ...]:
        """Return the codecs of all stages."""
        return tuple(codec for _, codec in self.stages)

    def choose(self, spec: GradSpec) -> Codec:
        """Return the codec of the last stage that has begun at `spec.step`."""
        return next(codec for start, codec in reversed(self.stages) if spec.step >= start)
