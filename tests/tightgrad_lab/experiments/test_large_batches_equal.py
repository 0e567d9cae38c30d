"""A batch that is accumulated trains as the batch in one piece does."""

from tightgrad_lab.experiments.large_batches.equal import equal


def test_both_ways_coincide_in_float64_and_drift_apart_in_float32() -> None:
    found = equal(32, 0.01, steps=6)
    assert found["whole"] == found["accumulated"]
    assert found["largest_difference"] < 1e-12 < found["largest_difference_float32"]
    assert len(set(found["whole"])) == 6
