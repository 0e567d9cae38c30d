"""The course that the page follows: eight chapters, their sections, and what belongs to each."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

SNIPPETS = Path(__file__).parent / "snippets"


@dataclass(frozen=True)
class Section:
    """A heading of the course.

    Args:
        chapter: 1 to 8.
        number: of the section in its chapter, from 1.
        pairs: the pairs of figure and table that stand in it.
        claims: the claims of the course that it makes.
        snippets: files of code that it shows; each runs as it is.
    """

    chapter: int
    number: int
    pairs: tuple[int, ...] = ()
    claims: tuple[str, ...] = ()
    snippets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As 4.2: also the key of its texts."""
        return f"{self.chapter}.{self.number}"

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return f"section{self.chapter}-{self.number}"

    @cached_property
    def code(self) -> tuple[tuple[str, str], ...]:
        """Name and text of each snippet, without the lines that only make it run."""
        return tuple((name, shown((SNIPPETS / name).read_text(encoding="utf-8"))) for name in self.snippets)


def shown(source: str) -> str:
    """Return what lies between the lines `# begin` and `# end`, unindented."""
    lines = source.splitlines()
    return dedent("\n".join(lines[lines.index("# begin") + 1 : lines.index("# end")])).strip("\n")


COURSE: tuple[tuple[Section, ...], ...] = (
    (Section(1, 1, (1,)), Section(1, 2, (2,), ("explode", "recurrent"))),
    (Section(2, 1, (3,), ("large_batch",)), Section(2, 2, (4,), ("memory",))),
    (Section(3, 1, (5,), ("bytes",)), Section(3, 2, (6,), ("efficiency",))),
    (
        Section(4, 1, (7,), ("stable",)),
        Section(
            4, 2, (8,), (), ("clip_pytorch.txt", "clip_pytorch_value.txt", "clip_tightgrad.txt", "clip_tensorflow.txt")
        ),
        Section(4, 3, (), (), ("clip_global_and_value.txt",)),
    ),
    (
        Section(5, 1, (9,), ("convergence", "stable_convergence")),
        Section(5, 2, (), (), ("accumulate_by_hand.txt", "accumulate_by_hand_ddp.txt")),
        Section(5, 3, (10,), (), ("accumulate_framework.txt",)),
    ),
    (
        Section(6, 1, (11,), ("compressed_convergence",)),
        Section(6, 2, (12,), (), ("compress.txt",)),
        Section(6, 3, (), ("quantisation",)),
        Section(6, 4, (), ("pruning",)),
        Section(6, 5, (), ("sparsification",)),
    ),
    (
        Section(7, 1, (13,), ("combined",), ("combined.txt",)),
        Section(7, 2, (14,), ("cure_vanishing", "cure_memory", "cure_precision")),
    ),
    (Section(8, 1, (15,)), Section(8, 2, (16,)), Section(8, 3, (17,))),
)
"""Chapters of sections. Every pair and every claim stands in exactly one of them."""

CLAIMS = tuple(claim for chapter in COURSE for section in chapter for claim in section.claims)
