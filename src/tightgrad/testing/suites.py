"""Test classes that a package derives from, and fills with its methods; pytest makes a test of each check."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tightgrad.core.protocols import Codec
from tightgrad.testing import companions
from tightgrad.testing.checks import Checks, Run
from tightgrad.testing.clipper_checks import CLIPPER_CHECKS, ClipCase
from tightgrad.testing.codec_checks import CODEC_CHECKS
from tightgrad.testing.codec_claims import CODEC_CLAIMS
from tightgrad.testing.feedback_checks import FEEDBACK_CHECKS, FeedbackCase, Sending
from tightgrad.testing.golden import check_golden, check_no_golden_file_is_left_over
from tightgrad.testing.memory_checks import MEMORY_CHECKS
from tightgrad.testing.reducer_checks import REDUCER_CHECKS, Pair, ReduceCase

Case = tuple[str, Run]


def cases(checks: Checks, subjects: Iterable[object], label: Any = repr) -> Iterator[Case]:
    """Yield a name and a function for each subject, check and variant."""
    for subject in subjects:
        for name, run in checks.runs(subject):
            yield f"{name}-{label(subject)}", run


class ConformanceTests:
    """A class whose tests with an argument `check` are run once for each case of `cases_of_<name of the test>`."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of each case. pytest calls this for each test function of the class."""
        found = getattr(self, f"cases_of_{metafunc.function.__name__}", None)
        if found is not None:
            params = [pytest.param(run, id=name) for name, run in found()]
            metafunc.parametrize("check", params)
        elif "codec" in metafunc.fixturenames:
            metafunc.parametrize("codec", self.codecs, ids=repr)  # type: ignore[attr-defined]


class CodecTests(ConformanceTests):
    """Runs a test of each thing that codecs promise, for each of `codecs`.

    Attributes:
        codecs: with the settings that matter.
        reducers: of this package, to try the codecs with; those that refuse one are left out.
        golden: folder of the frozen payloads; None is `golden` beside the test file.
    """

    codecs: ClassVar[Sequence[Codec]] = ()
    reducers: ClassVar[Sequence[ReduceCase]] = companions.REDUCERS
    golden: ClassVar[Path | None] = None

    def cases_of_test_codec(self) -> Iterator[Case]:
        """Yield what holds for any codec."""
        return cases(CODEC_CHECKS, self.codecs)

    def cases_of_test_claims(self) -> Iterator[Case]:
        """Yield what the card and the properties claim."""
        return cases(CODEC_CLAIMS, self.codecs)

    def cases_of_test_with_reducers(self) -> Iterator[Case]:
        """Yield what holds for a codec with a reducer."""
        return cases(REDUCER_CHECKS, pairs(self.reducers, self.codecs))

    def test_codec(self, check: Run) -> None:
        """Run a check with any tensor or payload."""
        __tracebackhide__ = True
        check()

    def test_claims(self, check: Run) -> None:
        """Run a check of what the card claims."""
        __tracebackhide__ = True
        check()

    def test_with_reducers(self, check: Run) -> None:
        """Run a check of the sum over ranks."""
        __tracebackhide__ = True
        check()

    def test_golden(self, codec: Codec, request: pytest.FixtureRequest) -> None:
        """Check what an older version sent."""
        __tracebackhide__ = True
        check_golden(codec, self._golden(request))

    def test_no_golden_file_is_left_over(self, request: pytest.FixtureRequest) -> None:
        """Check that each file is of settings that are tested."""
        check_no_golden_file_is_left_over(tuple(self.codecs), self._golden(request))

    def _golden(self, request: pytest.FixtureRequest) -> Path:
        return self.golden or request.path.parent / "golden"


class ClipperTests(ConformanceTests):
    """Runs a test of each thing that clippers promise, for each of `clippers`."""

    clippers: ClassVar[Sequence[ClipCase]] = ()

    def cases_of_test_clipper(self) -> Iterator[Case]:
        """Yield what holds for any clipper."""
        return cases(CLIPPER_CHECKS, self.clippers, lambda case: repr(case.clipper))

    def test_clipper(self, check: Run) -> None:
        """Run a check with any gradients."""
        __tracebackhide__ = True
        check()


class ReducerTests(ConformanceTests):
    """Runs a test of each thing that reducers promise, for each of `reducers` with each of `codecs` that it takes."""

    reducers: ClassVar[Sequence[ReduceCase]] = ()
    codecs: ClassVar[Sequence[Codec | None]] = companions.CODECS

    def cases_of_test_reducer(self) -> Iterator[Case]:
        """Yield what holds for a codec with a reducer."""
        return cases(REDUCER_CHECKS, pairs(self.reducers, self.codecs))

    def test_reducer(self, check: Run) -> None:
        """Run a check of the sum over ranks."""
        __tracebackhide__ = True
        check()


class FeedbackTests(ConformanceTests):
    """Runs a test of each thing that feedback promises, for each of `feedback` with what it takes."""

    feedback: ClassVar[Sequence[FeedbackCase]] = ()
    reducers: ClassVar[Sequence[ReduceCase]] = companions.REDUCERS
    codecs: ClassVar[Sequence[Codec | None]] = companions.CODECS

    def cases_of_test_feedback(self) -> Iterator[Case]:
        """Yield what holds with any reducer and codec."""
        return cases(FEEDBACK_CHECKS, self._sendings())

    def cases_of_test_memory(self) -> Iterator[Case]:
        """Yield what holds for what is remembered; one reducer with a codec that leaves much behind is enough."""
        lossy = {sending.case: sending for sending in reversed([*self._sendings()]) if leaves_much(sending)}
        return cases(MEMORY_CHECKS, lossy.values(), lambda sending: repr(sending.case.feedback))

    def test_feedback(self, check: Run) -> None:
        """Run a check of conservation."""
        __tracebackhide__ = True
        check()

    def test_memory(self, check: Run) -> None:
        """Run a check of what is remembered."""
        __tracebackhide__ = True
        check()

    def _sendings(self) -> Iterator[Sending]:
        for case in self.feedback:
            yield from sendings(case, self.reducers, self.codecs)


def sendings(case: FeedbackCase, reducers: Sequence[ReduceCase], codecs: Sequence[Codec | None]) -> Iterator[Sending]:
    """Yield the feedback with each pair that neither the reducer nor the feedback refuses."""
    for pair in pairs(reducers, codecs):
        if case.feedback.refuses(pair.codec, pair.case.reducer) is None:
            yield Sending(case, pair.case.reducer, pair.codec)


def leaves_much(sending: Sending) -> bool:
    """Return whether the codec leaves enough out for there to be something to remember."""
    return sending.codec is not None and sending.codec.contraction(256) < 0.9


def pairs(reducers: Sequence[ReduceCase], codecs: Sequence[Codec | None]) -> list[Pair]:
    """Return those pairs that the reducer does not refuse."""
    return [Pair(case, codec) for case in reducers for codec in codecs if case.reducer.refuses(codec) is None]
