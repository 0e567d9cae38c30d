"""The conformance suite, for methods of other packages. Needs pytest and hypothesis; `import tightgrad` needs neither.

In a package's tests, derive a class from `CodecTests`, `ClipperTests`, `ReducerTests` or `FeedbackTests`:

    from half import Half
    from tightgrad.testing import CodecTests

    class TestHalf(CodecTests):
        codecs = (Half(),)

Each check becomes a test. As a plugin, `pytest_plugins = ["tightgrad.testing"]` in conftest.py or
`pytest -p tightgrad.testing`, it adds `--tightgrad-write-golden`, which freezes the payloads that have no file yet.

Without pytest's collection, `check_codec(Half())` and its like run all checks of one method.
"""

import os
from typing import Any

import pytest

# Before the checks are imported: it makes pytest show the values in their assertions.
_CHECKS = ("codec_checks", "codec_claims", "golden", "clipper_checks", "reducer_checks", "feedback_checks")
pytest.register_assert_rewrite(*(f"tightgrad.testing.{name}" for name in (*_CHECKS, "memory_checks")))

from tightgrad.core.protocols import Codec  # noqa: E402
from tightgrad.testing.clipper_checks import CLIPPER_CHECKS, ClipCase  # noqa: E402
from tightgrad.testing.codec_checks import CODEC_CHECKS  # noqa: E402
from tightgrad.testing.codec_claims import CODEC_CLAIMS  # noqa: E402
from tightgrad.testing.feedback_checks import FEEDBACK_CHECKS, FeedbackCase  # noqa: E402
from tightgrad.testing.golden import WRITE  # noqa: E402
from tightgrad.testing.memory_checks import MEMORY_CHECKS  # noqa: E402
from tightgrad.testing.reducer_checks import REDUCER_CHECKS, ReduceCase, WireBytes  # noqa: E402
from tightgrad.testing.suites import (  # noqa: E402
    ClipperTests,
    CodecTests,
    FeedbackTests,
    ReducerTests,
    leaves_much,
    pairs,
    sendings,
)

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
    CODEC_CHECKS.run(codec)
    CODEC_CLAIMS.run(codec)
    for pair in pairs(CodecTests.reducers, [codec]):
        REDUCER_CHECKS.run(pair)


def check_clipper(case: ClipCase) -> None:
    """Raise an AssertionError unless the clipper keeps all that clippers, and its case, promise."""
    CLIPPER_CHECKS.run(case)


def check_reducer(case: ReduceCase) -> None:
    """Raise an AssertionError unless the reducer keeps all that reducers, and its case, promise."""
    for pair in pairs([case], ReducerTests.codecs):
        REDUCER_CHECKS.run(pair)


def check_feedback(case: FeedbackCase) -> None:
    """Raise an AssertionError unless the feedback keeps all that its case promises."""
    for sending in sendings(case, FeedbackTests.reducers, FeedbackTests.codecs):
        FEEDBACK_CHECKS.run(sending)
        if leaves_much(sending):
            MEMORY_CHECKS.run(sending)


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
