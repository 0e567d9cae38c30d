"""The measurement runs at a small size, counts right, and meets what can be counted rather than timed."""

import json
from importlib.util import find_spec

import pytest
import torch

from tightgrad.codecs import IntBlock, TopK
from tightgrad_lab.bench import codecs as measurement
from tightgrad_lab.bench.codec_peers import codec_peers
from tightgrad_lab.common.labels import label

PEERS = {"hivemind": "hivemind", "bitsandbytes": "bitsandbytes"}


@pytest.fixture(scope="module")
def result() -> dict:
    return measurement.run(60_000, repeats=1, warm_up=0)


def test_rows(result: dict) -> None:
    rows = result["rows"]
    json.dumps(rows, allow_nan=False)
    assert [row["codec"] for row in rows if not row["peer"]] == list(map(label, measurement.CODECS))
    assert all(row["encode_ratio_to_copy"] > 0 < row["decode_ratio_to_copy"] for row in rows)
    assert all(row["compression_factor"] == pytest.approx(4 * 60_000 / row["nbytes"]) for row in rows)


def test_peers_are_measured_or_named_with_the_reason(result: dict) -> None:
    names = {row["codec"] for row in result["rows"] if row["peer"]}
    assert {"memcpy", "torch.topk(0.001)", "torch quantization_pertensor_hook"} <= names
    for peer, module in PEERS.items():
        if find_spec(module) is None:
            assert module in result["missing"][peer]
            assert f"pip install {peer}" in result["missing"][peer]
        else:
            assert any(name.startswith(peer) for name in names)


def test_every_peer_gives_back_what_it_was_given() -> None:
    flat = torch.randn(8_192, generator=torch.Generator().manual_seed(0))
    for peer in codec_peers({}):
        out = torch.full_like(flat, 9.0)
        encoded = peer.encode(flat)
        peer.decode(out, encoded)
        assert float((out - flat).norm() / flat.norm()) < (1.0 if "topk" in peer.name else 0.2), peer.name
        assert 0 < peer.nbytes(encoded) <= 4 * flat.numel(), peer.name


def test_a_sparse_payload_of_100_mb_is_1500_times_smaller() -> None:
    """Counted on the bytes of a payload, not computed from the density."""
    (row,) = measurement.run(25_000_000, 1, 0, codecs=(TopK(0.001, values=IntBlock(4)),), peers=False)["rows"]
    assert row["compression_factor"] >= 1_500
    assert row["nbytes"] <= 100_000_000 / 1_500


def test_a_codec_that_fails_is_an_error_and_not_a_missing_row() -> None:
    class Broken(IntBlock):
        def encode_blocks(self, blocks, scratch, generator):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measurement.run(1_000, 1, 0, codecs=(Broken(8),), peers=False)
