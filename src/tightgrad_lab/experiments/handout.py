"""What the report needs besides results, since it may import neither torch nor tightgrad: files under runs/.

runs/methods.json has the cards of all methods; runs/published/ the results that come with the package, laid out as
runs/ itself is.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tightgrad.plan.registry import cards
from tightgrad_lab.schema import PUBLISHED, SCHEMA, published_files
from tightgrad_lab.training.files import write_json

METHODS = "methods.json"
FOLDER = "published"


def write_handout(runs: Path, published: Path = PUBLISHED) -> None:
    """Write both, replacing what an older version of the package left."""
    write_json(runs / METHODS, {"schema": SCHEMA, "methods": [_card(card) for card in cards()]})
    for source in published_files(published):
        target = runs / FOLDER / source.stem / "result.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


def _card(card: Any) -> dict[str, Any]:
    return asdict(card)
