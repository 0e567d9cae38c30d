"""Local updates: each rank trains alone for `every` steps, then all take one outer step together.

    d = sum_r (a - w_r) / W          the mean pseudo-gradient, a the anchor where the ranks last met
    v = m v + C(d)                   C: the plan's clipping and compression, with feedback
    a = a - lr (C(d) + m v)          Nesterov; every rank continues from the new a

    Stich 2018, Local SGD Converges Fast and Communicates Little, arXiv:1805.09767 (lr = 1, m = 0: the mean of the
    ranks' parameters). Douillard et al. 2023, DiLoCo, arXiv:2311.08105 (AdamW inside, Nesterov outside).

The pseudo-gradient is treated as a gradient is: guard, local clip, error feedback, codec, collective, clip.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from tightgrad.core.check import check_decay, check_integer, check_number
from tightgrad.core.config import from_config
from tightgrad.core.errors import ConfigError, IncompatiblePlanError
from tightgrad.plan.plan import Plan
from tightgrad.plan.registry import method

LOCAL_UPDATES_VERSION = 1


@dataclass(frozen=True)
class LocalUpdates:
    """Holds the settings that `LocalSGD` and `DiLoCo` share; use one of these.

    Args:
        every: local steps between two outer steps, at least 1.
        plan: what happens to the pseudo-gradient: `compress`, `local_clip`, `clip` and `guard`.

    Raises:
        ConfigError: a setting is out of its bounds.
        IncompatiblePlanError: the plan has a part that an outer step cannot run.
    """

    every: int = 100
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        check_integer("every", self.every, low=1)
        plan: object = self.plan
        if not isinstance(plan, Plan):
            raise ConfigError(f"plan={plan!r} must be a Plan, such as Plan(compress=Compress(...)).")
        if self.plan.accumulate is not None:
            raise IncompatiblePlanError(
                "an outer step has no micro-batches to accumulate; drop accumulate here, and accumulate in the local "
                "steps' own plan."
            )
        if self.plan.loss_scale is not None:
            raise IncompatiblePlanError(
                "parameters are not scaled by a loss scale, so neither are pseudo-gradients; drop loss_scale here, and "
                "use it in the local steps' own plan."
            )

    @property
    def outer_lr(self) -> float:
        """Return the step size of the outer step."""
        raise NotImplementedError

    @property
    def outer_momentum(self) -> float:
        """Return the Nesterov momentum of the outer step."""
        raise NotImplementedError

    def to_json(self, *, indent: int | None = None) -> str:
        """Write the settings as JSON text.

        Raises:
            ConfigError: this is a subclass of `LocalSGD` or `DiLoCo`, which JSON has no id for.
        """
        if type(self) not in _ids():
            name = type(self).__name__
            raise ConfigError(f"{name} has no id that JSON could name it by; write a LocalSGD or a DiLoCo itself.")
        settings = {key: value for key, value in vars(self).items() if key != "plan"}
        written = {"version": LOCAL_UPDATES_VERSION, "id": _ids()[type(self)], **settings}
        return json.dumps({**written, "plan": self.plan.to_config()}, indent=indent)


@dataclass(frozen=True)
class LocalSGD(LocalUpdates):
    """Lets each rank train alone, and continue from the mean of all ranks' parameters."""

    @property
    def outer_lr(self) -> float:
        """Return one: the step goes all the way to the mean."""
        return 1.0

    @property
    def outer_momentum(self) -> float:
        """Return zero: there is no momentum."""
        return 0.0


@dataclass(frozen=True)
class DiLoCo(LocalUpdates):
    """Lets each rank train alone, and takes a Nesterov step along the mean of how far the ranks have moved.

    Args:
        lr: step size of the outer step, above 0.
        momentum: Nesterov momentum of the outer step, at least 0 and below 1.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lr", self.lr, above=0.0)
        check_decay("momentum", self.momentum)
        feedback = self.plan.compress.feedback if self.plan.compress else None
        if self.momentum and feedback is not None and feedback.has_momentum:
            raise IncompatiblePlanError(
                f"{feedback.card.id} sends a velocity already, and the outer step would add its own to it; use "
                "error_feedback, or momentum=0.0."
            )

    @property
    def outer_lr(self) -> float:
        """Return the step size as set."""
        return self.lr

    @property
    def outer_momentum(self) -> float:
        """Return the momentum as set."""
        return self.momentum


def local_updates_from_json(text: str) -> LocalUpdates:
    """Read what `to_json` wrote.

    Raises:
        ConfigError: not JSON, another version or kind, an unknown or missing key, or a value out of its bounds.
    """
    try:
        config: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"local updates must be JSON: {error}.") from None
    if not isinstance(config, dict) or config.get("version") != LOCAL_UPDATES_VERSION:
        raise ConfigError(f"local updates must be a JSON object of version {LOCAL_UPDATES_VERSION}.")
    kinds = {name: kind for kind, name in _ids().items()}
    if config.get("id") not in kinds:
        raise ConfigError(f"local updates have the id {config.get('id')!r}; choose one of {', '.join(kinds)}.")
    settings = {key: value for key, value in config.items() if key not in ("version", "id")}
    if "plan" in settings:
        settings["plan"] = Plan.from_config(settings["plan"])
    made: LocalUpdates = from_config(kinds[config["id"]], settings, method, str(config["id"]))
    return made


def _ids() -> dict[type, str]:
    return {LocalSGD: "local_sgd", DiLoCo: "diloco"}
