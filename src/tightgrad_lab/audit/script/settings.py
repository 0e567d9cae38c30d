"""What a rank is told: which script to run, and what to change around it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tightgrad_lab.errors import ArgumentError


@dataclass(frozen=True)
class Settings:
    """One script, as a user would start it.

    Args:
        target: path of the script, or the name of a module.
        is_module: whether `target` is a module, as after `python -m`.
        arguments: the script's own.
        steps: optimizer steps after which it is stopped.
        batches: the most batches that a DataLoader gives in one epoch; None for all.
        shrink: "module.Class:name=value,...": arguments that a class gets instead of the script's;
            "__main__:NAME=value", or another module without a dot: what it assigns to its own names instead.
        stubs: packages that are replaced by empty ones if they are not installed.
        limit_seconds: after which a run is ended that has not taken its steps.
    """

    target: str
    is_module: bool = False
    arguments: tuple[str, ...] = ()
    steps: int = 6
    batches: int | None = None
    shrink: tuple[str, ...] = ()
    stubs: tuple[str, ...] = ()
    limit_seconds: float = 900.0

    @property
    def name(self) -> str:
        """For people."""
        return self.target if self.is_module else Path(self.target).name

    def check(self) -> None:
        """Raise an ArgumentError for what can be seen without running anything."""
        if not self.is_module and not Path(self.target).is_file():
            raise ArgumentError(
                f"there is no file {self.target}; write the script as after `python`, or use -m MODULE."
            )
        if self.target.endswith(".ipynb"):
            raise ArgumentError(
                f"{self.target} is a notebook; write it as a script first: jupyter nbconvert --to script {self.target}"
            )
        for one in self.shrink:
            parse_shrink(one)

    def to_json(self) -> str:
        """For the ranks."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        for name in ("arguments", "shrink", "stubs"):
            values[name] = tuple(values[name])
        return cls(**values)


def parse_shrink(text: str) -> tuple[str, str, dict[str, object]]:
    """Return the module, the class (none for "module:NAME=value") and the values of "module.Class:name=value,...".

    Raises:
        ArgumentError: it is not of that form.
    """
    place, colon, values = text.partition(":")
    module, name = (place, "") if "." not in place else place.rpartition(".")[::2]
    pairs = [pair.partition("=") for pair in values.split(",") if pair]
    named = module and (name or "." not in place)
    if not (colon and named and pairs) or not all(sign and key for key, sign, _ in pairs):
        raise ArgumentError(
            f"--shrink {text!r} is not of the form module.Class:name=value,name=value; write it like "
            "model.GPTConfig:n_layer=2, or __main__:batch_size=4 for a name that the script itself assigns."
        )
    return module, name, {key: _value(value) for key, _, value in pairs}


def _value(text: str) -> object:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return None if text == "None" else text
