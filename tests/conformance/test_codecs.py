"""What every codec must do with any tensor, and the mathematics that it claims."""

from pathlib import Path

import pytest

from conformance.cases import CODECS
from conformance.turns import all_variants_at_once, one_scale_in_turn, split
from tightgrad.testing import CodecTests
from tightgrad.testing.codec_claims import contracts, is_unbiased
from tightgrad.testing.golden import VERSION, golden_path

GOLDEN = Path(__file__).parent.parent / "golden"


IN_TURN, OTHERS = split(CodecTests.test_claims, one_scale_in_turn)


class TestCodecs(CodecTests):
    codecs = CODECS
    test_with_reducers = None  # test_reducers.py has all reducers
    golden = GOLDEN
    test_codec = all_variants_at_once(CodecTests.test_codec)
    test_claims = all_variants_at_once(IN_TURN)


@pytest.mark.slow
class TestCodecsAtOtherScales(CodecTests):
    codecs = CODECS
    test_codec = test_with_reducers = test_golden = None
    test_claims = OTHERS


def test_the_claims_are_tested_at_all() -> None:
    assert sum(map(is_unbiased, CODECS)) >= 2
    assert sum(map(contracts, CODECS)) >= 4


def test_every_golden_file_belongs_to_a_case() -> None:
    """Also those of ids that no codec has any more."""
    found = {path for path in GOLDEN.rglob("*.safetensors") if path.parent.name == VERSION}
    assert found == {golden_path(GOLDEN, codec) for codec in CODECS}
