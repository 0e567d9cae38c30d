"""A codec for each group of parameters, by name."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from tightgrad.codecs.bits.choice import Choice, check_codec
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec


@dataclass(frozen=True)
class PerTensor(Choice):
    """Gives each group of parameters its own codec, by name.

    Args:
        rules: pairs of a name pattern ("embedding.*") and a codec; the first pattern that matches a name decides.
        default: the codec of all other parameters.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.PerTensor((("embedding.*", tg.codecs.TopK(0.01)),), default=tg.codecs.IntBlock(8))
        >>> [codec.choose(GradSpec.of(name, torch.ones(2))).card.id for name in ("embedding.weight", "head.weight")]
        ['topk', 'int_block']
    """

    rules: tuple[tuple[str, Codec], ...]
    default: Codec

    card: ClassVar[MethodCard] = MethodCard(
        id="per_tensor",
        kind="codec",
        summary="a codec for each group of parameters, by name",
        scope="tensor",
        contraction="the smallest of all",
        reducer="gather",
        reference="TightGrad",
        use_when="embeddings, routers or heads need other settings than the rest",
        avoid_when="one codec is enough",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(tuple(rule) for rule in self.rules))
        rules: tuple[tuple[object, ...], ...] = self.rules
        for rule in rules:
            if len(rule) != 2 or not isinstance(rule[0], str):
                raise ConfigError(f'rules holds {rule!r}; each must be a pair such as ("embedding.*", Cast()).')
            check_codec(f"the codec for {rule[0]!r}", rule[1])
        check_codec("default", self.default)

    @property
    def choices(self) -> tuple[Codec, ...]:
        """Return the codecs of all rules and the default."""
        return (*(codec for _, codec in self.rules), self.default)

    def choose(self, spec: GradSpec) -> Codec:
        """Return the codec of the first rule that matches the name."""
        return next((codec for pattern, codec in self.rules if fnmatchcase(spec.name, pattern)), self.default)
