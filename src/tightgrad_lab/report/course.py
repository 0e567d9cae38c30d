"""The course that the book follows: eight chapters, their sections, and what belongs to each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A heading of the course; its title and its text stand in the file of its chapter, under `book/`.

    Args:
        chapter: 1 to 8.
        number: of the section in its chapter, from 1.
        pairs: the pairs of figure and table that stand in it.
        claims: the claims of the course that it makes.
    """

    chapter: int
    number: int
    pairs: tuple[str, ...]
    claims: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As 4.2."""
        return f"{self.chapter}.{self.number}"

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return f"section{self.chapter}-{self.number}"


COURSE: tuple[tuple[Section, ...], ...] = (
    (Section(1, 1, ("clip_geometry",)), Section(1, 2, ("temporal_order",), ("explode", "recurrent"))),
    (
        Section(2, 1, ("window_timeline",), ("large_batch",)),
        Section(2, 2, ("accumulation_memory",), ("memory", "accumulated_efficiency")),
    ),
    (Section(3, 1, ("codec_gallery",), ("bytes",)), Section(3, 2, ("link_speeds",), ("efficiency",))),
    (Section(4, 1, ("loss_spikes",), ("stable",)), Section(4, 2, ("clip_stages",))),
    (
        Section(5, 1, ("large_batches",), ("convergence", "stable_convergence")),
        Section(5, 2, ("window_states",)),
    ),
    (
        Section(6, 1, ("accuracy_vs_bytes",), ("compressed_convergence",)),
        Section(6, 2, ("encode_timeline",), ("quantisation", "pruning", "sparsification")),
    ),
    (
        Section(7, 1, ("combinations",), ("combined",)),
        Section(7, 2, ("common_failures",), ("cure_vanishing", "cure_memory", "cure_precision")),
    ),
    (Section(8, 1, ("image_case",)), Section(8, 2, ("language_cases",)), Section(8, 3, ("series_case",))),
)
"""Chapters of sections. Every pair and every claim stands in exactly one of them."""

CLAIMS = tuple(claim for chapter in COURSE for section in chapter for claim in section.claims)
