"""`tightgrad lab CASE --show N`: what a trained model makes of test samples."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.schema import COMBINATIONS

if TYPE_CHECKING:
    from tightgrad_lab.training.case import Example

SEED = 0


def show_examples(case: str, variant: str | None, full: bool, count: int, runs: Path, as_json: bool) -> None:
    """Print `count` test samples, drawn at random but the same each time, with the answers of the trained model.

    The model is that of the combination of all three techniques, seed 0.

    Raises:
        ArgumentError: no such model was trained.
    """
    import torch

    from tightgrad_lab.cases import load_case
    from tightgrad_lab.experiments.factorial import case_folder, case_settings
    from tightgrad_lab.training.model_file import has_model, load_model

    name = case_settings(case, full=full, seeds=None, epochs=None, variant=variant).variant
    folder = case_folder(runs, case, name) / COMBINATIONS[-1] / "seed0"
    if not has_model(folder):
        asked = f" --variant {variant}" if variant else " --full" if full else ""
        raise ArgumentError(f"{folder} holds no trained model; train one first: tightgrad lab {case}{asked}")
    study = load_case(case, name)
    _, test = study.load()
    model = load_model(study.model(), folder)
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))[:count]
    examples = study.examples(model, chosen)
    scores = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["metrics"]
    if as_json:
        from tightgrad_lab.cli.terminal.output import print_json

        print_json([{"given": e.given, "truth": e.truth, "predicted": e.predicted} for e in examples], scores=scores)
    else:
        _print(f"{case}: {name}", examples, scores)


def _print(title: str, examples: "list[Example]", scores: dict[str, float]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for heading in ("given", "truth", "predicted"):
        table.add_column(heading)
    for example in examples:
        colour = "green" if example.predicted == example.truth else "yellow"
        table.add_row(escape(example.given), escape(example.truth), f"[{colour}]{escape(example.predicted)}[/]")
    console = Console()
    console.print(table)
    console.print("all test samples: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
