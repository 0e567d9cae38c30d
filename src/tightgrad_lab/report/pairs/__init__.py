"""The 17 pairs of the handbook, one file each, in order."""

from tightgrad_lab.report.model import Pair
from tightgrad_lab.report.pairs import (
    accumulation_memory,
    accuracy_vs_bytes,
    clip_geometry,
    clip_stages,
    codec_gallery,
    combinations,
    common_failures,
    encode_timeline,
    image_case,
    language_cases,
    large_batches,
    link_speeds,
    loss_spikes,
    series_case,
    temporal_order,
    window_states,
    window_timeline,
)

PAIRS: tuple[Pair, ...] = (
    clip_geometry.PAIR,
    temporal_order.PAIR,
    window_timeline.PAIR,
    accumulation_memory.PAIR,
    codec_gallery.PAIR,
    link_speeds.PAIR,
    loss_spikes.PAIR,
    clip_stages.PAIR,
    large_batches.PAIR,
    window_states.PAIR,
    accuracy_vs_bytes.PAIR,
    encode_timeline.PAIR,
    combinations.PAIR,
    common_failures.PAIR,
    image_case.PAIR,
    language_cases.PAIR,
    series_case.PAIR,
)

__all__ = ["PAIRS"]
