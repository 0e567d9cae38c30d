"""Results of the full settings that come with the package, shown below what this machine measured itself."""

from dataclasses import dataclass, replace

from markupsafe import Markup

from tightgrad_lab.report import units
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import PUBLISHED, read_result
from tightgrad_lab.report.model import FigureSpec, Pair, Table
from tightgrad_lab.report.texts import Texts

SUFFIX = "-full"


@dataclass(frozen=True, slots=True)
class Published:
    """A pair as the full settings measured it, and on what."""

    items: list[FigureSpec | Table]
    heading: Markup
    about: Markup


def published(runs: Runs, pair: Pair, texts: Texts) -> Published | None:
    """The published result of a pair; None if there is none, or what this machine has is of the full settings too."""
    folder = runs.root / PUBLISHED
    result = read_result(folder, pair.name) if folder.is_dir() else None
    own = read_result(runs.root, pair.name)
    if result is None or pair.content is None or (own is not None and (own.is_full or own.published is not None)):
        return None
    content = pair.content(Runs(folder), texts)
    if content is None:
        return None
    machine = result.environment
    about = texts.html(
        "full.about",
        command=Markup("<code>{}</code>").format(result.command),
        seconds=units.seconds_text(result.seconds),
        date=str(machine["time"])[:10],
        processor=str(machine.get("processor", machine.get("device", ""))),
        cores=str(machine.get("cores", "")),
        torch=str(machine["torch"]),
    )
    kind = "full" if result.is_full else "published"
    heading = texts.html(f"{kind}.heading")
    return Published(
        [_renamed(item, texts(f"{kind}.label", label=item.label)) for item in content.blocks], heading, about
    )


def _renamed(item: FigureSpec | Table, label: str) -> FigureSpec | Table:
    """Its files, its anchor and its name must not be those of the own result."""
    return replace(item, slug=f"{item.slug}{SUFFIX}", label=label)
