"""Test classes that a package derives from, and fills with its methods; pytest makes a test of each check."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tightgrad.codecs import Cast, IntBlock, TopK
from tightgrad.core.protocols import Codec
from tightgrad.plan.entry_points import check_method
from tightgrad.reducers import Gather, Linear, TwoShot
from tightgrad.testing.checks import Checks, Run
from tightgrad.testing.clipper_checks import CLIPPER_CHECKS, ClipCase
from tightgrad.testing.codec_checks import CODEC_CHECKS
from tightgrad.testing.codec_claims import CODEC_CLAIMS
from tightgrad.testing.feedback_checks import FEEDBACK_CHECKS, MEMORY_CHECKS, FeedbackCase, Sending
from tightgrad.testing.golden import check_golden, check_no_golden_file_is_left_over
from tightgrad.testing.reducer_checks import REDUCER_CHECKS, Pair, ReduceCase

Case = tuple[str, Run]

# Methods of this package that those of another one are tried with.
CODECS: tuple[Codec | None, ...] = (None, Cast("float32"), Cast("bfloat16"), IntBlock(8), TopK(0.25))
REDUCERS = tuple(ReduceCase(reducer, rounding="element") for reducer in (Gather(), TwoShot(), Linear()))


def cases(checks: Checks, subjects: Iterable[object], label: Callable[[Any], str] = repr) -> Iterator[Case]:
    """Yield a name and a function for each subject, check and variant."""
    for subject in subjects:
        for name, run in checks.runs(subject):
            yield f"{name}-{label(subject)}", run


def one_test(find: Callable[[Any], Iterable[Case]]) -> Callable[[object, Run], None]:
    """Return a test that pytest runs once for each case of its class."""

    def test(self: object, check: Run) -> None:
        __tracebackhide__ = True
        check()

    test.cases = find  # type: ignore[attr-defined]
    return test


class ConformanceTests:
    """Holds tests that `one_test` made, and the methods that they are for."""

    def _methods(self) -> Iterable[object]:
        return ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make a test of each case. pytest calls this for each test function of the class."""
        found = getattr(metafunc.function, "cases", None)
        if found is not None:
            self._check_methods()
            names, runs = [*zip(*found(self), strict=True)] or [(), ()]
            metafunc.parametrize("check", runs, ids=names)

    def _check_methods(self) -> None:
        for method in self._methods():
            check_method(type(method))

    @classmethod
    def run(cls, **attributes: object) -> None:
        """Run all tests of a class with these attributes, and raise the first AssertionError; without golden files."""
        suite = type(cls.__name__, (cls,), attributes)()
        suite._check_methods()
        for name, test in vars(cls).items():
            if hasattr(test, "cases") and name != "test_golden":
                for _, run in test.cases(suite):
                    run()


class CodecTests(ConformanceTests):
    """Runs a test of each thing that codecs promise, for each of `codecs`.

    Attributes:
        codecs: with the settings that matter.
        reducers: of this package, to try the codecs with; those that refuse one are left out.
        golden: folder of the frozen payloads; None is `golden` beside the test file.
    """

    codecs: ClassVar[Sequence[Codec]] = ()
    reducers: ClassVar[Sequence[ReduceCase]] = REDUCERS
    golden: ClassVar[Path | None] = None

    def _methods(self) -> Iterable[object]:
        return self.codecs

    test_codec = one_test(lambda self: cases(CODEC_CHECKS, self.codecs))
    test_claims = one_test(lambda self: cases(CODEC_CLAIMS, self.codecs))
    test_with_reducers = one_test(lambda self: cases(REDUCER_CHECKS, pairs(self.reducers, self.codecs)))
    test_golden = one_test(lambda self: self._golden_cases())

    def _golden_cases(self) -> Iterator[Case]:
        folder = self.golden or Path(inspect.getfile(type(self))).parent / "golden"
        for codec in self.codecs:
            yield repr(codec), partial(check_golden, codec, folder)
        yield "no file is left over", partial(check_no_golden_file_is_left_over, self.codecs, folder)


class ClipperTests(ConformanceTests):
    """Runs a test of each thing that clippers promise, for each of `clippers`."""

    clippers: ClassVar[Sequence[ClipCase]] = ()

    def _methods(self) -> Iterable[object]:
        return [case.clipper for case in self.clippers]

    test_clipper = one_test(lambda self: cases(CLIPPER_CHECKS, self.clippers, lambda case: repr(case.clipper)))


class ReducerTests(ConformanceTests):
    """Runs a test of each thing that reducers promise, for each of `reducers` with each of `codecs` that it takes."""

    reducers: ClassVar[Sequence[ReduceCase]] = ()
    codecs: ClassVar[Sequence[Codec | None]] = CODECS

    def _methods(self) -> Iterable[object]:
        return [case.reducer for case in self.reducers]

    test_reducer = one_test(lambda self: cases(REDUCER_CHECKS, pairs(self.reducers, self.codecs)))


class FeedbackTests(ConformanceTests):
    """Runs a test of each thing that feedback promises, for each of `feedback` with what it takes."""

    feedback: ClassVar[Sequence[FeedbackCase]] = ()
    reducers: ClassVar[Sequence[ReduceCase]] = REDUCERS
    codecs: ClassVar[Sequence[Codec | None]] = CODECS

    def _methods(self) -> Iterable[object]:
        return [case.feedback for case in self.feedback]

    test_feedback = one_test(lambda self: cases(FEEDBACK_CHECKS, self._sendings()))
    test_memory = one_test(lambda self: self._memory_cases())

    def _sendings(self) -> list[Sending]:
        """Each feedback with each pair that neither the reducer nor the feedback refuses."""
        return [
            Sending(case, pair.case.reducer, pair.codec)
            for case in self.feedback
            for pair in pairs(self.reducers, self.codecs)
            if case.feedback.refuses(pair.codec, pair.case.reducer) is None
        ]

    def _memory_cases(self) -> Iterator[Case]:
        """One reducer with a codec that leaves much behind is enough."""
        lossy = {sending.case: sending for sending in reversed(self._sendings()) if sending.leaves_much()}
        return cases(MEMORY_CHECKS, lossy.values(), lambda sending: repr(sending.case.feedback))


def pairs(reducers: Sequence[ReduceCase], codecs: Sequence[Codec | None]) -> list[Pair]:
    """Return those pairs that the reducer does not refuse."""
    return [Pair(case, codec) for case in reducers for codec in codecs if case.reducer.refuses(codec) is None]
