"""What an experiment of the handbook is: settings in, a figure's data and a table's rows out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

SettingsT = TypeVar("SettingsT")
Report = Callable[[float, str], None]
"""Called with the share that is done, in [0, 1], and what is being done."""


@dataclass(frozen=True)
class Measured:
    """What an experiment found: JSON values only, in SI base units.

    Args:
        figure: the data of the figure.
        table: the rows of the table, a dictionary each.
        device: what computed, such as "cpu".
        backend: of torch.distributed, such as "gloo"; None without a process group.
    """

    figure: Mapping[str, Any]
    table: Sequence[Mapping[str, Any]]
    device: str = "cpu"
    backend: str | None = None


class Experiment(ABC, Generic[SettingsT]):
    """Measures one figure and its table. Writes no files itself; `run` returns all it found."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Glob patterns of files under runs/ that it starts from; they are its inputs."""

    @abstractmethod
    def settings(self, *, full: bool) -> SettingsT:
        """A frozen dataclass of JSON values: in about a minute on two cores, or (full) as long as it deserves."""

    @abstractmethod
    def run(self, settings: SettingsT, report: Report) -> Measured:
        """Measure. Starts its own ranks if it needs some.

        Raises:
            RunError: it failed; the message says why.
        """

    def missing(self) -> str | None:
        """Say what this machine lacks to run it, and how to get it; None if nothing."""
        return None
