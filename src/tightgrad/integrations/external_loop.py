"""Windows in a loop of another framework: all batches are given at once, micro-batches and the step one by one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tightgrad.accumulate import Accumulate, Window
from tightgrad.accumulate.settings import Schedule
from tightgrad.accumulate.weights import Weighed
from tightgrad.core.collective import gathered
from tightgrad.core.errors import ConfigError, StateMismatchError, UnsupportedError, UsageError
from tightgrad.core.notices import warn
from tightgrad.core.protocols import Clipper, Collective
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.premises.collaborators import check_without_closure
from tightgrad.plan.guard import agreed_on_any
from tightgrad.plan.plan import Plan
from tightgrad.records.step_record import StepRecord

Batch = TypeVar("Batch")


class ExternalLoop:
    """Runs a pipeline from a framework's callbacks.

    Args:
        attach: makes the pipeline, from model and optimizer as they are when it is called.
        write_instead: of a step of the optimizer that the framework does not see.

    Attributes:
        pipe: what is driven.
        record: of the last step; None before it.
        window: has begun, and its step has not come; None between windows.
        position: micro-batches of the window that have begun.
    """

    def __init__(self, attach: Callable[[], GradientPipeline], write_instead: str) -> None:
        self._attach = attach
        self._write_instead = write_instead
        self.pipe = self._attached()
        self.record: StepRecord | None = None
        self.window: Window[Any] | None = None
        self.position = 0
        self._windows: Iterator[Window[Any]] = iter(())
        self._held = ExitStack()
        self._norms: list[Tensor] = []
        self._not_asked: list[Any] = []

    def open(self, batches: Sequence[Any], full: int | None = None) -> None:
        """Begin a window of exactly these batches, or go on with them in the window that a loaded checkpoint was taken
        in. Collective: every rank must call it.

        Args:
            batches: at least one, and at most as many as a full window has, less `num_done`.
            full: micro-batches of a full window; None leaves the number as it is.

        Raises:
            ConfigError: this number cannot be set.
            StateMismatchError: the open window of the checkpoint is not one of these batches.
            UsageError: the window before has not come to its step, or the ranks have different numbers.
        """
        self.take_in_new_parameters()
        if full is not None:
            self.pipe.set_micro_batches(full)
        saved = self.pipe.state.open_window
        done = [] if saved is None else [Weighed(row) for row in saved.weights[: saved.position]]
        if saved is not None and len(done) == len(saved.weights):
            raise StateMismatchError(
                f"the checkpoint was taken after the last of {len(done)} backwards of a window and before its step; "
                "save after optimizer.step(), or between two earlier batches."
            )
        self._windows = self.pipe.windows([*done, *batches])  # kept, since letting go of it waits for the other ranks
        self.window, self.position = next(self._windows), len(done)

    @property
    def num_done(self) -> int:
        """Return how many micro-batches of the next window ran before the checkpoint that was loaded was taken."""
        saved = self.pipe.state.open_window
        return 0 if saved is None else saved.position

    def load(self, folder: Path) -> None:
        """Load what methods remember, or warn where a framework's checkpoint has nothing of it. Collective: every rank
        must call it.
        """
        if agreed_on_any(folder.exists(), self.pipe.adapter.collective):
            self.pipe.load(folder)
            self.window, self._norms = None, []  # an open one is dropped
        else:
            self.tell_nothing_saved(str(folder.parent))

    def tell_nothing_saved(self, checkpoint: str) -> None:
        """Warn, by rank 0, that a checkpoint was saved without TightGrad."""
        if self.pipe.adapter.collective.rank == 0:
            warn(
                f"{checkpoint} holds nothing of TightGrad: it was saved without it, or its part is missing. Model, "
                "optimizer and schedule go on; what the plan's methods remember (residuals, norms) and its count of "
                "steps begin anew.",
                2,
            )

    def take_in_new_parameters(self) -> None:
        """Attach again where parameters were unfrozen and given to the optimizer since, keeping what methods remember.
        On several ranks that is an error when the window begins, since wrappers do not sum these parameters.
        """
        pipe, groups = self.pipe, [group for optimizer in self.pipe.optimizers for group in optimizer.param_groups]
        known = set(map(id, pipe.adapter.parameters.values()))
        is_new = any(p.requires_grad and id(p) not in known for group in groups for p in group["params"])
        if is_new and pipe.adapter.collective.world_size == 1:
            state = pipe.state_dict()
            self.pipe = self._attached()
            self.pipe.load_state_dict(state)

    def _attached(self) -> GradientPipeline:
        pipe = self._attach()
        check_without_closure(pipe.optimizers, "This loop cannot run; take an optimizer whose step() needs no closure.")
        pipe.ownership.write_instead = self._write_instead
        return pipe

    @property
    def is_last(self) -> bool:
        """Tell whether the current micro-batch is the window's last, so that the step comes after it."""
        return self.window is not None and self.position == len(self.window)

    @property
    def num_backwards(self) -> int:
        """Return how many micro-batches of the open window have had their backward."""
        return self.window.backwards if self.window is not None else 0

    @property
    def weight(self) -> float:
        """Return what the current micro-batch counts on this rank."""
        assert self.window is not None
        return next(iter(self.window.weights[self.position - 1].values()))

    @property
    def loss_share(self) -> float:
        """Return what the current micro-batch's loss counts for in the mean over the window's losses on all ranks,
        times the number of ranks: frameworks average over ranks what they log.
        """
        assert self.window is not None
        ranks, accumulate = self.pipe.adapter.collective.world_size, self.pipe.plan.accumulate
        share = ranks * (accumulate or Accumulate()).loss_factor(self.weight, 1.0)
        return share / self.window.total_weight if self.window.total_weight else 0.0

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Hold the next micro-batch, around its forward and backward.

        Raises:
            UsageError: the window has no further one.
        """
        if self.window is None or self.is_last:
            raise UsageError("there is no further micro-batch in this window; the loop runs more than it announced.")
        self.position += 1
        with ExitStack() as self._held:
            self._held.enter_context(self.window.micro_batch(self.position - 1))
            yield

    def step(self, optimizer: Any = None) -> StepRecord:
        """Finish the window, and tell the norm to those who asked for it. Collective: every rank must call it.

        Args:
            optimizer: whose step the loop has asked for; all are stepped, and the loop is to ask for those of the
                others as well, before its next batch. None asks for all of them.
        """
        self._held.close()  # what is looked at when a micro-batch ends has to be found before weights move
        self.window = None
        self._not_asked = [] if optimizer is None else [one for one in self.pipe.optimizers if one is not optimizer]
        norms, self._norms = self._norms, []
        self.record = self.pipe.step()
        if self.record.grad_norm is not None:
            for norm in norms:
                norm.fill_(self.record.grad_norm)
        return self.record

    def has_stepped(self, optimizer: Any) -> bool:
        """Tell whether the step that the loop asks for has come already, with that of another of several optimizers."""
        others = [one for one in self._not_asked if one is not optimizer]
        is_done = len(others) < len(self._not_asked)
        self._not_asked = others
        return is_done

    def check_all_asked(self) -> None:
        """Raise `UsageError` if a window's step has come and the loop has not called that of each optimizer."""
        left, self._not_asked = self._not_asked, []
        if left:
            kinds = " and ".join(type(optimizer).__name__ for optimizer in left)
            raise UsageError(
                f"the loop called step() of one optimizer and not of {kinds}, but several optimizers are one step, in "
                "which all were stepped. Call the step() of each after every batch; for optimizers that step at "
                "different times, write the loop yourself with a tightgrad.attach for each."
            )

    def abandon(self) -> None:
        """Drop the open window, if there is one."""
        self._not_asked = []
        if self.window is not None:
            self.pipe.abandon()
            self.window, self._norms = None, []

    def tell_of_drop(self, why: str) -> None:
        """Warn, by rank 0, if a window is open whose step will not come, so that the gradients in it are dropped."""
        if self.num_backwards and self.pipe.adapter.collective.rank == 0:
            assert self.window is not None
            warn(
                f"{why} after {self.num_backwards} of the {len(self.window)} batches that make one step: their "
                "gradients are dropped, and no step is taken for them.",
                2,
            )

    def close(self) -> None:
        """Drop the open window, and give model and optimizer back to other loops."""
        self.abandon()
        self.pipe.close()

    def later_norm(self) -> Tensor:
        """Return a float32 scalar that is nan until the step, which fills in the norm before clipping: gradients are
        summed over ranks and clipped there.
        """
        norm = torch.tensor(torch.nan, device="cpu")
        self._norms.append(norm)
        return norm


def check_takes_loss_alone(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` if a framework's backward was given more than the loss."""
    given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    if given:
        raise UnsupportedError(
            f"backward() takes no {given} with TightGrad, but the loss alone; add the losses of a batch and call it "
            "once."
        )


def check_same_number(batches: Any, most: int, collective: Collective, how: str, instead: str) -> None:
    """Raise `UsageError`, on every rank, if the ranks' loops would end at different steps. Collective.

    Args:
        batches: a loader, or the number of its batches; one without a length is not compared.
        most: batches of a step, of which the last may have fewer on one rank than on another; 1 if it may not.
        collective: the ranks.
        how: what lets them have different numbers.
        instead: what to do about it, as a sentence.
    """
    try:
        own = int(batches if isinstance(batches, int | float) else len(batches))
    except (TypeError, NotImplementedError, OverflowError):
        own = -1
    numbers = [number for (number,) in gathered([own], collective)]
    if min(numbers) >= 0 and len({-(-number // most) for number in numbers}) > 1:
        raise UsageError(
            f"the ranks have {', '.join(map(str, numbers))} batches ({how}), so some would wait for ever for the "
            f"others' last step. {instead}"
        )


def in_groups(batches: Iterable[Batch], is_full: Callable[[list[Batch]], bool]) -> Iterator[list[Batch]]:
    """Yield the batches in lists, each as long as it takes to be full; the last one may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if is_full(group):
            yield group
            group = []
    if group:
        yield group


def with_micro_batches(plan: Plan, micro_batches: int | Schedule, setting: str) -> Plan:
    """Return the plan with the framework's own number of micro-batches.

    Raises:
        ConfigError: the plan has another.
    """
    accumulate = plan.accumulate or Accumulate(micro_batches=micro_batches)
    is_whole = accumulate.source == "loader" and accumulate.partial == "flush" and accumulate.fetch != "batch"
    if accumulate.micro_batches != micro_batches or not is_whole:
        raise ConfigError(
            f"the plan has {accumulate}, but {setting} is {micro_batches} and that loop cuts the windows; "
            'pass the same number, with source="loader", partial="flush" and fetch="window", or leave accumulate out '
            "of the plan."
        )
    return replace(plan, accumulate=replace(accumulate, fetch="window"))


def with_clip(plan: Plan, wanted: Clipper | None, setting: str) -> Plan:
    """Return the plan with the framework's own clipping.

    Args:
        plan: what to run.
        wanted: what the framework is set to; None where it does not clip.
        setting: where the framework has it from.

    Raises:
        ConfigError: the plan has another.
    """
    if plan.clip is None:
        return replace(plan, clip=wanted)
    if wanted is not None and not clips_alike(plan.clip, wanted):
        raise ConfigError(
            f"{setting} clips with {wanted}, but the plan with {plan.clip}: gradients are clipped once. Give "
            "both the same, or leave it out of one of them."
        )
    return plan


def check_clips_alike(plan: Plan, wanted: Clipper, who: str) -> None:
    """Raise `UsageError` if a loop calls for another clipping than the plan's."""
    if not clips_alike(plan.clip, wanted):
        raise UsageError(
            f"{who} {wanted}, but the plan clips with {plan.clip}: gradients are clipped once, by the plan, after they "
            "are summed. Put the same clipping into the plan, or drop the call."
        )


def clips_alike(planned: Clipper | None, wanted: Clipper) -> bool:
    """Tell whether the plan clips as a framework's norm or value clipping would; how it does so may differ."""
    bounds = ("max_norm", "norm_type", "max_value")
    return type(planned) is type(wanted) and all(
        getattr(planned, bound, None) == getattr(wanted, bound, None) for bound in bounds
    )
