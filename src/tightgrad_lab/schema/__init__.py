"""What experiments write and the report reads: names, numbers, the schema version and where a result lies.

The rows of tables and the data of figures are in `clipping`, `accumulation`, `compression` and `failures`, by topic.
Numbers are in SI base units. Nothing here imports torch or matplotlib.
"""

from pathlib import Path

SCHEMA = 1
"""Of every JSON file under runs/."""

TECHNIQUES = ("clip", "accumulate", "compress")
COMBINATIONS = (
    "none",
    "clip",
    "accumulate",
    "compress",
    "clip+accumulate",
    "clip+compress",
    "accumulate+compress",
    "clip+accumulate+compress",
)
"""All subsets of the three techniques, as the folders of the case studies' runs are named."""

NUMBERS: dict[str, int] = {
    "clip_geometry": 1,
    "temporal_order": 2,
    "window_timeline": 3,
    "accumulation_memory": 4,
    "codec_gallery": 5,
    "link_speeds": 6,
    "loss_spikes": 7,
    "clip_stages": 8,
    "large_batches": 9,
    "window_states": 10,
    "accuracy_vs_bytes": 11,
    "encode_timeline": 12,
    "combinations": 13,
    "common_failures": 14,
    "image_case": 15,
    "language_cases": 16,
    "series_case": 17,
}
"""The number that a figure and its table have on the page. Everywhere else they go by name."""

STUDIES: dict[str, str] = {
    "small_batches": "large_batches",
    "critical_batch": "large_batches",
    "muon": "loss_spikes",
    "paper_claims": "codec_gallery",
    "depth": "image_case",
}
"""Experiments without a figure of their own, which run when they are asked for by name; each with the pair in whose
place its numbers stand."""

PAYS = 0.95
"""The largest share of an uncompressed step's time at which a compression method is said to pay."""

PUBLISHED = Path(__file__).parents[1] / "published"
"""The results that come with the package, a file for each name."""


def published_files(folder: Path = PUBLISHED) -> list[Path]:
    """Return the results of experiments that come with the package, in the order of the page."""
    return [path for path in (folder / f"{name}.json" for name in (*NUMBERS, *STUDIES)) if path.is_file()]


def number(name: str) -> int:
    """Return the number of a pair, or of the pair in whose place the numbers of a study stand."""
    return NUMBERS[STUDIES.get(name, name)]


def result_path(runs: Path, name: str) -> Path:
    """Return where the result of an experiment lies below a folder of runs."""
    return runs / name / "result.json"


def command(name: str, *, full: bool = False) -> str:
    """Return the command that makes a result again."""
    return f"tightgrad lab --only {NUMBERS.get(name, name)}" + (" --full" if full else "")


def label(name: str, part: str = "") -> str:
    """Return the label of a figure or table, such as 6 or 13b."""
    return f"{NUMBERS[name]}{part}"


def slug(kind: str, name: str, part: str = "") -> str:
    """Return the anchor and file name of a figure or table, such as table06."""
    return f"{kind}{NUMBERS[name]:02}{part}"
