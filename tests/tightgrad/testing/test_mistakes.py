"""What the author of a codec or a clipper may do wrong at first, and what the suite says then."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tightgrad as tg
import tightgrad.testing
from tightgrad.codecs import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import Clipped, GradSpec, Payload
from tightgrad.plan import registry
from tightgrad.plan.entry_points import Outside
from tightgrad.testing import ClipCase, check_codec
from tightgrad.testing.clipper_checks import CLIPPER_CHECKS

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


@dataclass(frozen=True)
class Taken(Right):
    card = replace(CARD, id="cast")


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
    Taken: r"the id 'cast' leads to tightgrad.codecs.cast.Cast, .* in place of .*\.Taken; give the card another id",
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


def test_every_assertion_of_the_suite_says_what_was_expected():
    files = sorted(Path(tightgrad.testing.__file__).parent.glob("*.py"))
    asserts = [(path.name, node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    asserts = [(name, node) for name, node in asserts if isinstance(node, ast.Assert)]
    assert len(asserts) > 50
    assert [f"{name}:{node.lineno}" for name, node in asserts if node.msg is None] == []


@dataclass(frozen=True)
class LosesNaN(tg.clip.GlobalNorm):
    def clip_(self, grads, params, norm, state):
        largest = max((norm([grad]) for grad in grads.values()), default=torch.zeros(()))
        factor = (self.max_norm / largest).clamp(max=1.0)
        for grad in grads.values():
            grad.mul_(factor)
        return Clipped(norm(list(grads.values())), factor)


@dataclass(frozen=True)
class ShrinksAll(tg.clip.GlobalNorm):
    def clip_(self, grads, params, norm, state):
        before = norm(list(grads.values()))
        factor = self.max_norm / (self.max_norm + before)
        for grad in grads.values():
            grad.mul_(factor)
        return Clipped(before, factor)


@dataclass(frozen=True)
class NewTensors(tg.clip.GlobalNorm):
    def clip_(self, grads, params, norm, state):
        for name, grad in list(grads.items()):
            grads[name] = grad.clone()
        return super().clip_(grads, params, norm, state)


@pytest.mark.parametrize(
    ("clipper", "check", "words"),
    [
        (LosesNaN(1.0), "nan_is_seen", r"where a gradient has a NaN, expected NaN, .*torch.amax\(\)"),
        (ShrinksAll(1.0), "identity_below", "gradients below the bound; a clipper leaves them as they are"),
        (NewTensors(1.0), "strided", "clip_ has put other tensors into the dict; change the gradients themselves"),
        (tg.clip.GlobalNorm(1e9), "direction", "does not clip gradients .* give a smaller bound"),
    ],
)
def test_what_the_author_of_a_clipper_may_do_wrong_is_said(clipper, check, words):
    case = ClipCase(clipper, limit="tensor")
    (run,) = [run for name, run in CLIPPER_CHECKS.runs(case) if name.startswith(check)]
    with pytest.raises(AssertionError, match=words):
        run()
