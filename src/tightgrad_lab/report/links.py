"""Links to pairs, and the commands that make them."""

from markupsafe import Markup

from tightgrad_lab.report import units
from tightgrad_lab.report.pairs import PAIRS
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import NUMBERS


def pairs_in_words(texts: Texts, *names: str) -> Markup:
    """Return links to pairs: Figure 2, Figure 7."""
    links = [
        Markup('<a href="#pair{}">{}</a>').format(n, texts("figure.label", label=n).replace(" ", units.NBSP))
        for n in (NUMBERS[name] for name in names)
    ]
    return Markup("、" if texts.language == "zh" else ", ").join(links)


def commands(*names: str) -> Markup:
    """The commands that make pairs, or nothing for those whose experiment does not exist yet."""
    ready = [pair.command for pair in PAIRS if pair.name in names and pair.content]
    return Markup(" ").join(Markup("<code>{}</code>").format(command) for command in dict.fromkeys(ready))
