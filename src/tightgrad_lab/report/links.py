"""Links to pairs, and the commands that make them."""

from markupsafe import Markup

from tightgrad_lab.report import units
from tightgrad_lab.report.pairs import PAIRS
from tightgrad_lab.report.texts import Texts


def pairs_in_words(texts: Texts, *numbers: int) -> Markup:
    """Links to pairs: Figure 2, Figure 7."""
    links = [
        Markup('<a href="#pair{}">{}</a>').format(n, texts("figure.label", label=n).replace(" ", units.NBSP))
        for n in numbers
    ]
    return Markup("、" if texts.language == "zh" else ", ").join(links)


def commands(*numbers: int) -> Markup:
    """The commands that make pairs, or nothing for those whose experiment does not exist yet."""
    ready = [pair.command for pair in PAIRS if pair.number in numbers and pair.content]
    return Markup(" ").join(Markup("<code>{}</code>").format(command) for command in dict.fromkeys(ready))
