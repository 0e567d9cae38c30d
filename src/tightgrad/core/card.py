"""What is known about a method: the one source of the docs tables, the report and `tightgrad methods`."""

from dataclasses import dataclass

from tightgrad.core.check import check_choice
from tightgrad.core.errors import ConfigError

SCOPES = ("element", "block", "tensor", "unit", "matrix", "model")
KINDS = ("accumulate", "clip", "codec", "reducer", "feedback")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCard:
    """Describes one method, for plans, docs, report and command line.

    Args:
        id: the name in a plan's JSON, unique over all methods.
        kind: "accumulate", "clip", "codec", "reducer" or "feedback".
        summary: one line.
        scope: how much the method must see at once: "element", "block", "tensor", "unit", "matrix" or "model".
        reference: the paper or the source.
        use_when: one line that stands after "Use when", such as "the link is up to twice too slow".
        avoid_when: one line that stands after "Avoid when", and says what to use instead.
        unbiased: the expectation of what is delivered equals the input.
        linear: payloads may be summed before they are decoded.
        contraction: for a codec, the delta of ||x - C(x)||^2 <= (1 - delta) ||x||^2, in words or as a formula.
        reducer: for a codec, the id of the reducer that a plan takes when it names none.
    """

    id: str
    kind: str
    summary: str
    scope: str
    reference: str
    use_when: str
    avoid_when: str
    unbiased: bool = False
    linear: bool = False
    contraction: str = ""
    reducer: str = ""

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        for name in ("id", "summary", "scope", "reference", "use_when", "avoid_when"):
            if not getattr(self, name):
                raise ConfigError(f"the card of method {self.id!r} has an empty {name}; fill it in.")
        check_choice("scope", self.scope, SCOPES)
