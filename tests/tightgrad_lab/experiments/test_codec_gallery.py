"""What a codec delivers is what is measured; labels tell settings apart."""

import pytest
import torch

from support.row_types import wrong
from tightgrad.codecs import Cast, IntBlock, Threshold, TopK
from tightgrad.core.types import GradSpec
from tightgrad.reducers import PowerSGD
from tightgrad_lab.bench.codecs import CODECS
from tightgrad_lab.common import byte_model
from tightgrad_lab.common.labels import label
from tightgrad_lab.experiments import codec_gallery
from tightgrad_lab.experiments.codec_gallery import BINS, REACH, Settings
from tightgrad_lab.schema.compression import CodecRow

SETTINGS = Settings(steps=1, batch_size=1, repeats=1, draws=4)


def flat() -> torch.Tensor:
    return torch.randn(5000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Cast(), "Cast(bfloat16)"),
        (TopK(0.001, values=IntBlock(4)), "TopK(0.001, values=IntBlock(4))"),
        (IntBlock(8, rounding="stochastic"), "IntBlock(8, rounding=stochastic)"),
        (PowerSGD(2), "PowerSGD(2)"),
    ],
)
def test_labels(method: object, expected: str) -> None:
    assert label(method) == expected


def test_labels_tell_all_codecs_apart() -> None:
    assert len({label(codec) for codec in CODECS}) == len(CODECS)


def test_a_row_is_measured() -> None:
    row = codec_gallery.codec_row(IntBlock(4), flat(), SETTINGS)
    assert wrong(row, CodecRow, "row") == []
    assert row["nbytes"] == IntBlock(4).payload_nbytes(GradSpec.of("x", flat()))
    assert 0.05 < row["relative_error"] < 0.2
    assert row["cosine"] > 0.98
    assert row["averaged_error"] == pytest.approx(row["relative_error"])  # nearest rounding: the same error every time


def test_errors_of_an_unbiased_codec_cancel() -> None:
    row = codec_gallery.codec_row(IntBlock(4, rounding="stochastic"), flat(), SETTINGS)
    assert row["unbiased"]
    assert row["averaged_error"] == pytest.approx(row["relative_error"] / 2, rel=0.15)


def test_a_fixed_threshold_fits_the_gradient() -> None:
    (fitted,) = codec_gallery.fitting([Threshold(3.0)], flat() / 1000)
    assert isinstance(fitted, Threshold)
    assert fitted.threshold == pytest.approx(0.003, rel=0.05)
    assert codec_gallery.codec_row(fitted, flat() / 1000, SETTINGS)["relative_error"] < 1


def test_a_histogram_holds_everything() -> None:
    values = torch.tensor([-100.0, -1.0, 0.0, 1.0, 100.0])
    shares = codec_gallery.histogram(values, torch.ones(3))
    assert len(shares) == BINS
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] == shares[-1] == 0.2
    assert REACH < 100


def test_what_arrives_and_what_is_left_behind_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_gallery, "LAYER", "layer")
    grads = {"layer": flat().view(50, 100)}
    for name, codec in codec_gallery.FAMILIES.items():
        shown = slice(64, 128)
        found = codec_gallery.family(name, codec, grads, shown)
        assert len(found["strip"]) == 64
        assert 0 < found["relative_error"] < 3, name
        assert found["compression_factor"] >= 2, name


def test_the_gradient_is_that_of_the_model() -> None:
    loss, grads = codec_gallery.gradient(SETTINGS, lambda share, text: None)
    assert 3 < loss < 7  # log 256 = 5.5
    assert grads.keys() == dict(byte_model.ByteTransformer().named_parameters()).keys()
    assert codec_gallery.LAYER in grads


def test_the_shown_stretch_holds_values_that_sparsification_keeps() -> None:
    values = torch.full((6400,), 0.01)
    values[[5, 70, 130, 140, 150, *range(200, 260)]] = 1.0
    shown = codec_gallery.stretch(values, 64)
    assert shown.stop - shown.start == 64
    assert shown.start % 64 == 0
    assert (values[shown] == 1).sum() >= 3
