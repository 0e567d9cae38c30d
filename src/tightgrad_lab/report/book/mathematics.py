"""Formulas: LaTeX in, MathML out, and the symbols that a formula uses."""

import re
from functools import cache

from latex2mathml.converter import convert

from tightgrad_lab.report.errors import ReportError

_WORDS = re.compile(r"\\(?:text|operatorname|mathrm)\{[^}]*\}")
_OPERATORS = frozenset(
    re.findall(
        r"\w+",
        """
        left right lVert rVert bigl bigr cdot times odot pm min max log ln exp sum prod frac sqrt partial nabla
        le ge lt gt ll gg ne approx propto leftarrow to iff Rightarrow infty in mid colon top hat bar tilde
        lfloor rfloor mathbb mathcal ldots cdots dots quad qquad begin end underbrace
        """,
    )
)
"""Commands of LaTeX that are no symbols of ours."""
_SYMBOL = re.compile(r"\\mathbb\{E\}|\\([A-Za-z]+)|([A-Za-z])")


@cache
def mathml(latex: str, *, block: bool = False) -> str:
    """Return a formula as MathML; norm bars do not grow with what stands beside them, and a slash has no spaces."""
    try:
        found = convert(latex, display="block" if block else "inline")
    except Exception as error:
        why = str(error) if str(error) not in ("", "None") else type(error).__name__
        raise ReportError(f"The formula {latex!r} is not understood: {why}.") from error
    if unknown := re.search(r">(\\\w+)<", found):
        raise ReportError(f"The formula {latex!r} has the command {unknown[1]}, which is not known.")
    found = found.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')
    return found.replace("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">&#x0002F;</mo>')


def symbols(latex: str) -> list[str]:
    r"""Return the symbols of a formula in order, each once: letters and Greek letters, subscripts among them.

    Examples:
        >>> symbols(r"g_k \leftarrow \eta\,\min(1, c)")
        ['g', 'k', '\\eta', 'c']
    """
    found: list[str] = []
    for match in _SYMBOL.finditer(_WORDS.sub(" ", latex)):
        name = match[0]
        if match[1] is not None and match[1] in _OPERATORS:
            continue
        if name not in found:
            found.append(name)
    return found
