"""The experiments by name. Some pairs of the page have none of their own: they are drawn from runs of case studies."""

from importlib import import_module

from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.experiments.experiment import Experiment
from tightgrad_lab.schema import NUMBERS, STUDIES

CASES_OF_PAIR = {
    "combinations": ("image",),
    "image_case": ("image",),
    "language_cases": ("text", "translation"),
    "series_case": ("series",),
}
MODULES: dict[str, str] = {
    "clip_geometry": "clip_geometry",
    "temporal_order": "temporal_order.experiment",
    "window_timeline": "window_timeline.experiment",
    "accumulation_memory": "accumulation_memory.experiment",
    "codec_gallery": "codec_gallery",
    "link_speeds": "link_speeds",
    "loss_spikes": "loss_spikes.experiment",
    "clip_stages": "clip_stages.experiment",
    "large_batches": "large_batches.experiment",
    "window_states": "window_states.experiment",
    "accuracy_vs_bytes": "accuracy_vs_bytes.experiment",
    "encode_timeline": "encode_timeline.experiment",
    "common_failures": "common_failures.experiment",
    "small_batches": "batch_size.small_batches",
    "critical_batch": "batch_size.critical_batch",
    "muon": "muon",
    "paper_claims": "paper_claims.experiment",
    "depth": "paper_claims.depth",
}


def names() -> tuple[str, ...]:
    """Return the names of the experiments that have a figure, in the order of the page."""
    return tuple(sorted(MODULES.keys() - STUDIES.keys(), key=NUMBERS.__getitem__))


def name_of(asked: str) -> str:
    """Return the name of a pair of the page that is asked for by its name or its number.

    Raises:
        ArgumentError: there is none.
    """
    by_number = {str(number): name for name, number in NUMBERS.items()}
    found = by_number.get(asked, asked)
    if found not in NUMBERS and found not in STUDIES:
        known = ", ".join([*(f"{number} {name}" for name, number in NUMBERS.items()), *STUDIES])
        raise ArgumentError(f"there is no experiment {asked!r}; choose a number or a name from: {known}.")
    return found


def experiment(name: str) -> Experiment[object]:
    """Return the experiment of a pair.

    Raises:
        ArgumentError: it has none.
    """
    if name not in MODULES:
        raise ArgumentError(f"there is no experiment {name!r}; choose from {', '.join(MODULES)}.")
    module = import_module(f"tightgrad_lab.experiments.{MODULES[name]}")
    found: Experiment[object] = module.EXPERIMENT
    return found
