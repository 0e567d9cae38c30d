"""Options that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[Path, typer.Option(help="Keep the measured runs in this folder.", file_okay=False)]
Report = Annotated[
    Path, typer.Option(help="Write the report into this folder; index.html is its first page.", file_okay=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress stays on stderr.")]

RUNS = Path("runs")
REPORT = Path("report")
