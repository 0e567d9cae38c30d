"""What the author of a codec may do wrong at first, and what the suite says then."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tightgrad.codecs import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad.plan import registry
from tightgrad.plan.entry_points import Outside
from tightgrad.testing import check_codec

CARD = replace(Cast.card, id="mine")


class Plain(Codec):
    """Has no settings of its own: only abstract methods are defined."""

    dtype = "float32"
    layout, encode, decode = Cast.layout, Cast.encode, Cast.decode


class NoCard(Plain):
    pass


class NoDataclass(Plain):
    card = CARD


@dataclass
class NotFrozen(Plain):
    card = CARD


@dataclass(frozen=True)
class CardIsASetting(Plain):
    card: MethodCard = CARD  # type: ignore[misc]


@dataclass(frozen=True)
class Right(Cast):
    card = CARD


@dataclass(frozen=True)
class NoPayload(Right):
    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        return super().encode(flat, spec, generator).tensors  # type: ignore[return-value]


@dataclass(frozen=True)
class NoDimension(Right):
    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        (values,) = super().encode(flat, spec, generator).tensors
        return Payload((values.view(()) if flat.numel() == 1 else values,), spec)


@dataclass(frozen=True)
class Wider(Right):
    def decode(self, payload: Payload) -> Tensor:
        return super().decode(payload).double()


@dataclass(frozen=True)
class Trusting(Right):
    def decode(self, payload: Payload) -> Tensor:
        return payload.tensors[0].float()


@dataclass(frozen=True)
class OtherBytes(Right):
    def encode_together(self, flats: object, specs: object) -> Tensor:
        return super().encode_together(flats, specs) + 1  # type: ignore[arg-type]


@dataclass(frozen=True)
class NoReducer(Right):
    card = replace(CARD, reducer="")


@dataclass(frozen=True)
class NoSuchReducer(Right):
    card = replace(CARD, reducer="twoshot")


MISTAKES = {
    NoCard: "NoCard has no `card`; give it a MethodCard",
    NoDataclass: r"NoDataclass is no dataclass.*add @dataclass\(frozen=True\)",
    NotFrozen: r"NotFrozen is a dataclass that can be changed; write @dataclass\(frozen=True\)",
    CardIsASetting: r"the card of CardIsASetting is a setting; annotate it as ClassVar\[MethodCard\]",
    NoPayload: r"encode\(\) gives a tuple; return Payload",
    NoDimension: r"a tensor of a payload has the shape \(\); give it one dimension",
    Wider: r"decode\(\) gives torch.float64",
    Trusting: r"a payload .* was decoded; begin decode\(\) with checked_tensors\(\)",
    OtherBytes: r"encode_all\(\) gives other bytes than encode\(\)",
    NoReducer: 'the card of mine names no reducer; .*"gather" takes every codec',
    NoSuchReducer: "no method has the id 'twoshot'",
}


@pytest.mark.parametrize("cls", MISTAKES, ids=lambda cls: cls.__name__)
def test_a_mistake_is_named_with_what_to_write(cls: Callable[[], Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_outside", lambda: Outside({"mine": cls}, ()))  # type: ignore[dict-item]
    with pytest.raises((AssertionError, ConfigError), match=MISTAKES[cls]):  # type: ignore[index]
        check_codec(cls())


def test_a_codec_without_an_entry_point_is_told_to_have_one() -> None:
    with pytest.raises(ConfigError, match=r"no method has the id 'mine'.*'tightgrad.methods' .*; install the package"):
        check_codec(Right())


def test_an_unknown_scope_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="scope='vector' is not known; choose one of 'element', 'block'"):
        replace(CARD, scope="vector")
