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
    pairs: tuple[str, ...] = ()
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
    (Section(1, 1, ("clip_geometry",)), Section(1, 2, ("temporal_order",), ("explode", "recurrent"))),
    (Section(2, 1, ("window_timeline",), ("large_batch",)), Section(2, 2, ("accumulation_memory",), ("memory",))),
    (Section(3, 1, ("codec_gallery",), ("bytes",)), Section(3, 2, ("link_speeds",), ("efficiency",))),
    (
        Section(4, 1, ("loss_spikes",), ("stable",)),
        Section(
            4,
            2,
            ("clip_stages",),
            (),
            ("clip_pytorch.txt", "clip_pytorch_value.txt", "clip_tightgrad.txt", "clip_tensorflow.txt"),
        ),
        Section(4, 3, (), (), ("clip_global_and_value.txt",)),
    ),
    (
        Section(5, 1, ("large_batches",), ("convergence", "stable_convergence")),
        Section(5, 2, (), (), ("accumulate_by_hand.txt", "accumulate_by_hand_ddp.txt")),
        Section(5, 3, ("window_states",), (), ("accumulate_framework.txt",)),
    ),
    (
        Section(6, 1, ("accuracy_vs_bytes",), ("compressed_convergence",)),
        Section(6, 2, ("encode_timeline",), (), ("compress.txt",)),
        Section(6, 3, (), ("quantisation",)),
        Section(6, 4, (), ("pruning",)),
        Section(6, 5, (), ("sparsification",)),
    ),
    (
        Section(7, 1, ("combinations",), ("combined",), ("combined.txt",)),
        Section(7, 2, ("common_failures",), ("cure_vanishing", "cure_memory", "cure_precision")),
    ),
    (Section(8, 1, ("image_case",)), Section(8, 2, ("language_cases",)), Section(8, 3, ("series_case",))),
)
"""Chapters of sections. Every pair and every claim stands in exactly one of them."""

CLAIMS = tuple(claim for chapter in COURSE for section in chapter for claim in section.claims)
