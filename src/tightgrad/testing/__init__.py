"""The conformance suite, for methods of other packages. Needs hypothesis, and pytest where pytest runs it.

In a package's tests, derive a class from `CodecTests`, `ClipperTests`, `ReducerTests` or `FeedbackTests`:

    from half import Half
    from tightgrad.testing import CodecTests

    class TestHalf(CodecTests):
        codecs = (Half(),)

Each check becomes a test. As a plugin, by `pytest -p tightgrad.testing` or `pytest_plugins = ["tightgrad.testing"]` in
conftest.py, it adds `--tightgrad-write-golden`, which freezes the payloads that have no file yet.

Without pytest, `check_codec(Half())` and its like run all checks of one method.
"""

import os
import sys
from typing import Any

if "pytest" in sys.modules:  # before the checks are imported: pytest then shows the values in their assertions
    _CHECKS = ("codec_checks", "codec_claims", "golden", "clipper_checks", "reducer_checks", "feedback_checks")
    sys.modules["pytest"].register_assert_rewrite(*(f"tightgrad.testing.{name}" for name in _CHECKS))

from tightgrad.core.protocols import Codec
from tightgrad.testing.clipper_checks import ClipCase
from tightgrad.testing.feedback_checks import FeedbackCase
from tightgrad.testing.golden import WRITE
from tightgrad.testing.reducer_checks import ReduceCase, WireBytes
from tightgrad.testing.suites import ClipperTests, CodecTests, FeedbackTests, ReducerTests

__all__ = [
    "ClipCase",
    "ClipperTests",
    "CodecTests",
    "FeedbackCase",
    "FeedbackTests",
    "ReduceCase",
    "ReducerTests",
    "WireBytes",
    "check_clipper",
    "check_codec",
    "check_feedback",
    "check_reducer",
]


def check_codec(codec: Codec) -> None:
    """Raise an AssertionError unless the codec keeps all that codecs promise, golden payloads excepted."""
    CodecTests.run(codecs=(codec,))


def check_clipper(case: ClipCase) -> None:
    """Raise an AssertionError unless the clipper keeps all that clippers, and its case, promise."""
    ClipperTests.run(clippers=(case,))


def check_reducer(case: ReduceCase) -> None:
    """Raise an AssertionError unless the reducer keeps all that reducers, and its case, promise."""
    ReducerTests.run(reducers=(case,))


def check_feedback(case: FeedbackCase) -> None:
    """Raise an AssertionError unless the feedback keeps all that its case promises."""
    FeedbackTests.run(feedback=(case,))


def pytest_addoption(parser: Any) -> None:
    """Add the option that writes golden payloads."""
    group = parser.getgroup("tightgrad")
    group.addoption(
        "--tightgrad-write-golden",
        action="store_true",
        help="write the golden payloads of codecs that have none; no file is changed",
    )


def pytest_configure(config: Any) -> None:
    """Hand the option on to the checks, and to worker processes."""
    if config.getoption("--tightgrad-write-golden"):
        os.environ[WRITE] = "1"
