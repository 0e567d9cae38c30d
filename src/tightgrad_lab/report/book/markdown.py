"""Markdown to HTML, with formulas, citations, links to figures and boxes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from markupsafe import Markup, escape
from mdit_py_plugins.container import container_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from tightgrad_lab.report import units
from tightgrad_lab.report.book.glossary import defined
from tightgrad_lab.report.book.mathematics import mathml
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import NUMBERS

BOXES = ("goals", "example", "course", "we", "literature", "predict")
WIDE = 4  # columns of a table that a phone shows as cards
LONG = 24
"""Characters of LaTeX from which on a formula inside a line scrolls on a phone."""
_SEEN = "seen"
_Tokens = Sequence[Token]


@dataclass
class Renderer:
    """Turns the text of one language into HTML.

    Args:
        texts: the words around the text.
        citations: key of a paper -> its anchor and how it is cited, as in "Pascanu et al. (2013)".
    """

    texts: Texts
    citations: Mapping[str, tuple[str, str]]
    held: dict[str, Markup] = field(default_factory=dict)
    codes: int = 0
    _markdown: MarkdownIt = field(init=False)

    def __post_init__(self) -> None:
        markdown = MarkdownIt("commonmark", {"html": False, "typographer": False}).enable("table")
        markdown.use(dollarmath_plugin, allow_space=False, double_inline=False)
        for name in BOXES:
            markdown.use(container_plugin, name, render=self._box(name))
        if self.texts.language == "zh":
            markdown.add_render_rule("softbreak", lambda *_: "")
        markdown.add_render_rule("math_inline", _inline)
        markdown.add_render_rule("math_block", lambda _, tokens, place, *more: self._block(tokens[place], more[-1]))
        markdown.add_render_rule("fence", lambda _, tokens, place, *more: self._code(tokens[place]))
        markdown.add_render_rule("table_open", lambda *_: '<div class="prose-table" tabindex="0"><table>\n')
        markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
        self._markdown = markdown

    def html(self, source: str, seen: set[str] | None = None) -> Markup:
        """Return blocks of text; headings begin at the fourth level. Symbols in `seen` are not defined again."""
        found = self._markdown.render(self._linked(source), {_SEEN: set() if seen is None else seen})
        found = re.sub(r"<(/?)h3>", r"<\1h4>", found)
        return Markup(_as_cards(_kept_together(self._released(found))))

    def inline(self, source: str) -> Markup:
        """Return a line of text without a paragraph around it."""
        found = self._markdown.renderInline(self._linked(source), {_SEEN: set()})
        return Markup(_kept_together(self._released(found)))

    def hold(self, html: Markup) -> str:
        """Return a mark that passes through Markdown and becomes this HTML."""
        mark = f"\ue000{len(self.held)}\ue001"
        self.held[mark] = html
        return mark

    def _released(self, html: str) -> str:
        return self.texts.counted(re.sub("\ue000\\d+\ue001", lambda mark: str(self.held[mark[0]]), html))

    def _linked(self, source: str) -> str:
        """Replace citations and names of figures by links."""
        if self.texts.language == "zh":
            source = re.sub(r"(\[@[\w-]+\]) ", r"\1", source)  # a full-width bracket has its own space
        bracketed = r"(?<=[(（])\[@([\w-]+)\](?=[)）])"
        cited = re.sub(bracketed, lambda match: self._citation(match[1], bracketed=True), source)
        cited = re.sub(r"\[@([\w-]+)\]", lambda match: self._citation(match[1]), cited)
        return re.sub(r"\{(fig|tab):(\w+)\}", lambda match: self._pair(match[1], match[2]), cited)

    def _citation(self, key: str, *, bracketed: bool = False) -> str:
        """Pascanu et al. (2013), or inside brackets Pascanu et al., 2013."""
        if key not in self.citations:
            raise ReportError(f"[@{key}] is no key of references.json; known are {', '.join(sorted(self.citations))}.")
        anchor, label = self.citations[key]
        if bracketed:
            label = re.sub(r" \((\d+)\)$", r", \1", re.sub(r"（(\d+)）$", r"，\1", label))
        return self.hold(Markup('<a class="cite" href="#{}">{}</a>').format(anchor, label))

    def _pair(self, kind: str, name: str) -> str:
        if name not in NUMBERS:
            raise ReportError(f"{{{kind}:{name}}} names no experiment; known are {', '.join(NUMBERS)}.")
        number = NUMBERS[name]
        word = self.texts("figure.label" if kind == "fig" else "table.label", label=number)
        return self.hold(Markup('<a href="#pair{}">{}</a>').format(number, word.replace(" ", units.NBSP)))

    def _box(self, name: str) -> Any:
        def render(own: RendererHTML, tokens: _Tokens, place: int, options: OptionsDict, env: dict[str, Any]) -> str:
            token = tokens[place]
            if token.nesting < 0:
                return "</details>\n" if name == "predict" else "</div>\n"
            if name == "predict":
                words = token.info.strip().removeprefix(name).strip()
                return f'<details class="predict"><summary>{self._markdown.renderInline(words, env)}</summary>\n'
            heading = escape(self.texts(f"box.{name}"))
            return f'<div class="box {name}"><p class="box-title">{heading}</p>\n'

        return render

    def _code(self, token: Token) -> str:
        self.codes += 1
        label = f"{escape(self.texts('section.code'))} {self.codes}"
        code = escape(token.content.rstrip("\n"))
        return f'<pre class="code" tabindex="0" role="region" aria-label="{label}"><code>{code}</code></pre>\n'

    def _block(self, token: Token, env: dict[str, Any]) -> str:
        latex = token.content.strip()
        formula = f'<div class="formula" tabindex="0">{mathml(latex, block=True)}</div>\n'
        new = defined(latex, self.texts.language, env[_SEEN])
        if not new:
            return formula
        colon = "：" if self.texts.language == "zh" else ": "
        items = [
            f"<span>{mathml(one.latex)}{colon}{self._markdown.renderInline(one.meaning, env)}</span>" for one in new
        ]
        return f'{formula}<p class="where">{" ".join(items)}</p>\n'


def _as_cards(html: str) -> str:
    """Let wide tables become a card for each row on a phone, as the tables in words do: each cell knows its heading."""

    def wide(table: re.Match[str]) -> str:
        headings = [re.sub("<[^>]+>", "", heading) for heading in re.findall(r"<th[^>]*>(.*?)</th>", table[0])]
        if len(headings) < WIDE:
            return table[0]
        order = iter(range(table[0].count("<td")))

        def cell(opening: re.Match[str]) -> str:
            column = next(order) % len(headings)
            return f'<td data-heading="{headings[column]}"{opening[1]}>' if column else f"<td{opening[1]}>"

        return re.sub(r"<td([^>]*)>", cell, table[0].replace("<table>", '<table class="words">'))

    return re.sub(r"<table>.*?</table>", wide, html, flags=re.DOTALL)


def _kept_together(html: str) -> str:
    """No line begins with the punctuation that follows a formula."""
    formula = r'(?:<span class="long" tabindex="0">)?<math(?:(?!</math>).)*</math>(?:</span>)?'
    marks = "[,.;:?)，。；：、？）]+"
    return re.sub(f"({formula})({marks})", r'<span class="nobr">\1\2</span>', html, flags=re.DOTALL)


def _inline(own: RendererHTML, tokens: _Tokens, place: int, options: OptionsDict, env: dict[str, Any]) -> str:
    latex = tokens[place].content
    found = mathml(latex)
    return f'<span class="long" tabindex="0">{found}</span>' if len(latex) > LONG else found
