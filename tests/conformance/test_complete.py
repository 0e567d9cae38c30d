"""Nobody adds a method without its line in cases.py."""

from conformance.cases import CLIPPERS, CODECS, FEEDBACKS, REDUCERS
from tightgrad.plan.registry import cards


def test_every_registered_method_has_a_case() -> None:
    tested = {
        *(codec.card.id for codec in CODECS),
        *(case.clipper.card.id for case in CLIPPERS),
        *(case.reducer.card.id for case in REDUCERS),
        *(case.feedback.card.id for case in FEEDBACKS),
        "accumulate",  # tests/parity
    }
    registered = {card.id for card in cards()}
    assert not registered - tested, "methods without a line in tests/conformance/cases.py"
    assert not tested - registered, "methods without a line in their family's __init__.py"


def test_cases_differ() -> None:
    assert len(set(map(repr, CODECS))) == len(CODECS)
    assert len({repr(case.clipper) for case in CLIPPERS}) == len(CLIPPERS)
