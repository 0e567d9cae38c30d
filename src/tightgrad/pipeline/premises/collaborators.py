"""What `attach` is given beside the plan: can the pipeline work with it? Asked before anything is touched.

Each check raises `ConfigError` where something else was given than is asked for, and `UnsupportedError` where it is
what was asked for but cannot be run, with the line to write instead.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from tightgrad.core.errors import ConfigError, UnsupportedError, UsageError
from tightgrad.plan.local_updates import LocalUpdates
from tightgrad.plan.plan import Plan, plan_for

WRITER_METHODS = ("start", "write", "failed", "close")


def check_model(model: object) -> None:
    """Raise unless it is the module that is trained."""
    if isinstance(model, AveragedModel):
        raise UnsupportedError(
            "the model is an AveragedModel, whose weights are averages and are not trained; attach the model itself, "
            "and call averaged.update_parameters(model) after pipe.step()."
        )
    if isinstance(model, nn.Module):
        _check_has_values(model)
        return
    if _is_optimizer(model):
        raise ConfigError("the optimizer came first; write attach(model, optimizer, plan).")
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ConfigError(f"model={model.__name__} is a class; make the module first: model = {model.__name__}(...).")
    if isinstance(model, Sequence | Mapping) and model:
        raise ConfigError(
            f"model is a {type(model).__name__}; put several modules into one, torch.nn.ModuleList([...]), or attach "
            "each with an optimizer of its own."
        )
    raise ConfigError(f"model is {_kind(model)}, not a torch.nn.Module; pass the module itself and not its parameters.")


def _check_has_values(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UsageError(
                f"{name!r} has no shape yet (a lazy layer); run one forward before making the optimizer and attach()."
            )
        if parameter.is_meta:
            raise UsageError(
                f"{name!r} is on the meta device and has no values; call model.to_empty(device=...) and initialise or "
                "load it before attach()."
            )


def checked_optimizers(given: Any) -> tuple[Any, ...]:
    """Return the optimizers, in the order in which they step, if each steps without being given more than a closure."""
    if isinstance(given, Mapping) or type(given).__name__ == "generator":
        inside = "list(optimizers.values())" if isinstance(given, Mapping) else "list(optimizers)"
        raise ConfigError(f"optimizer is a {type(given).__name__}; write attach(model, {inside}, plan).")
    optimizers = tuple(given) if isinstance(given, Sequence) else (given,)
    if not optimizers:
        raise ConfigError("optimizer is an empty list; give at least one torch.optim.Optimizer.")
    for optimizer in optimizers:
        _check_optimizer(optimizer)
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise ConfigError("the list of optimizers has the same one twice, which would step twice; give each once.")
    return optimizers


def _check_optimizer(optimizer: object) -> None:
    if isinstance(optimizer, nn.Module):
        raise ConfigError("the second argument is a module; write attach(model, optimizer, plan).")
    if isinstance(optimizer, Sequence | Mapping):
        raise ConfigError(
            f"the list of optimizers holds a {type(optimizer).__name__}; give the optimizers themselves, one after the "
            "other: attach(model, [muon, adamw], plan)."
        )
    if isinstance(optimizer, type):
        raise ConfigError(
            f"optimizer={optimizer.__name__} is a class; write {optimizer.__name__}(model.parameters(), ...)."
        )
    if not _is_optimizer(optimizer):
        raise ConfigError(
            f"optimizer is {_kind(optimizer)}, which has no step() and no param_groups; pass a torch.optim.Optimizer "
            "over the model's parameters."
        )
    if getattr(optimizer, "scaler", None) is not None and hasattr(optimizer, "gradient_state"):
        raise UnsupportedError(
            f"{type(optimizer).__name__} has Accelerate's GradScaler, whose step would unscale gradients that the "
            'pipeline has never scaled; take mixed_precision="bf16", or attach optimizer.optimizer with autocast and '
            "attach(..., scaler=torch.amp.GradScaler())."
        )
    needed = [name for name in required_by_step(optimizer) if name != "closure"]
    if needed:
        raise UnsupportedError(
            f"{type(optimizer).__name__}.step() needs {', '.join(needed)}, which pipe.step() cannot know; give them "
            "usual values in a subclass."
        )


def check_will_step(optimizers: Iterable[object]) -> None:
    """Raise `UsageError` if an optimizer of Accelerate's would do nothing when it is stepped now: Accelerate counts
    batches as well, and says that gradients are still being accumulated.
    """
    for optimizer in optimizers:
        if not getattr(getattr(optimizer, "gradient_state", None), "sync_gradients", True):
            raise UsageError(
                f"{type(optimizer).__name__}.step() would do nothing now: Accelerate counts batches as well, and by "
                "its count no step is due, so the window's gradients would be lost. Nothing has been changed. "
                "Leave `with accelerator.accumulate(model):` out, since pipe.windows() makes the windows; or attach "
                "optimizer.optimizer; or take tightgrad.integrations.accelerate.TightAccelerator."
            )


def needs_closure(optimizer: object) -> bool:
    """Tell whether an optimizer says that it takes several gradients in one step: by an argument of its step, or by two
    methods, `first_step` and `second_step`, as implementations of SAM have them.
    """
    return "closure" in required_by_step(optimizer) or has_two_steps(optimizer)


def has_two_steps(optimizer: object) -> bool:
    """Tell whether the optimizer has its step in two halves."""
    return hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step")


def takes_closure(optimizer: object) -> bool:
    """Tell whether a closure may make a difference to the optimizer's step: not to those of torch that can go without,
    nor to ours.
    """
    step: Any = type(optimizer).step  # type: ignore[attr-defined]
    is_known = step.__module__.startswith(("torch.optim.", "tightgrad."))
    return "closure" in required_by_step(optimizer) or ("closure" in _parameters(step) and not is_known)


@contextmanager
def without_closure(optimizer: object) -> Iterator[None]:
    """Hold this around `optimizer.step()`: an error about a closure that was not given becomes an `UnsupportedError`.
    Not every optimizer that needs one says so in the signature of its step.
    """
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        text = str(error).lower()
        is_called = isinstance(error, TypeError) and text == "'nonetype' object is not callable"
        if "closure" in text or is_called:
            raise _closure_missing(optimizer) from error
        raise


def check_without_closure(optimizers: Iterable[object], instead: str = "") -> None:
    """Raise `UnsupportedError` if an optimizer says that it needs a closure, where it will get none.

    Args:
        optimizers: of the pipeline.
        instead: what to do about it; empty where `pipe.run` can be called.
    """
    for optimizer in filter(needs_closure, optimizers):
        raise _closure_missing(optimizer, instead)


def _closure_missing(optimizer: object, instead: str = "") -> UnsupportedError:
    kind = type(optimizer).__name__
    declared = f"`class Closing({kind}): def step(self, closure): return super().step(closure)`"
    declare = "" if needs_closure(optimizer) else f" Its class has to say so: {declared}."
    run = (
        "Give the whole window to pipe.run: `for window in pipe.windows(loader): record = pipe.run(window, loss_of)`, "
        f"where loss_of(batch) returns a batch's loss.{declare}"
    )
    return UnsupportedError(
        f"{kind} evaluates the loss again inside its step (a closure), and step() alone cannot. {instead or run}"
    )


def checked_schedulers(given: Any, optimizers: Sequence[Any]) -> tuple[Any, ...]:
    """Return the schedulers, in the order in which they step. Several optimizers may have a list of them."""
    if given is None:
        return ()
    several = isinstance(given, list | tuple) and len(optimizers) > 1
    schedulers = tuple(given) if several else (given,)
    for scheduler in schedulers:
        _check_scheduler(scheduler, optimizers, can_have_loss=True)
    return schedulers


def needs_metric(scheduler: object) -> bool:
    """Tell whether a scheduler's step takes a metric and nothing else, as ReduceLROnPlateau's does."""
    return required_by_step(scheduler) in (["metrics"], ["metric"])


def _check_scheduler(scheduler: object, optimizers: Sequence[Any], *, can_have_loss: bool = False) -> None:
    """Raise unless it can be stepped after each applied step, without being given anything but the window's loss."""
    if isinstance(scheduler, Sequence | Mapping):
        raise ConfigError(
            f"scheduler is a {type(scheduler).__name__}; write "
            "scheduler=torch.optim.lr_scheduler.ChainedScheduler([...]) to step several, or SequentialLR for one after "
            "the other."
        )
    if isinstance(scheduler, type):
        raise ConfigError(f"scheduler={scheduler.__name__} is a class; write {scheduler.__name__}(optimizer, ...).")
    step = getattr(scheduler, "step", None)
    if not callable(step) or _is_optimizer(scheduler):
        raise ConfigError(
            f"scheduler is {_kind(scheduler)}, not a learning rate scheduler; pass one of torch.optim.lr_scheduler, or "
            "None and step it yourself after pipe.step()."
        )
    if hasattr(scheduler, "scheduler") and hasattr(scheduler, "optimizers"):
        raise UnsupportedError(
            f"{type(scheduler).__name__} decides by Accelerate's own state when to step, and steps once for each "
            "process; pass the scheduler inside it, scheduler=scheduler.scheduler, or use TightAccelerator."
        )
    gets_loss = can_have_loss and needs_metric(scheduler)
    if gets_loss and getattr(scheduler, "mode", "min") == "max":
        raise ConfigError(
            f'{type(scheduler).__name__} has mode="max" and would be given the loss, for which less is better; take '
            'mode="min", or leave scheduler out and step it yourself with your metric after pipe.step().'
        )
    needed = required_by_step(scheduler)
    if needed and not gets_loss:
        raise UnsupportedError(
            f"{type(scheduler).__name__}.step() needs {', '.join(needed)}, which the pipeline does not know. Leave "
            "scheduler out, and step it yourself: `record = pipe.step()`, then "
            f"`if not record.skipped: scheduler.step({', '.join(needed)})`."
        )
    for part in getattr(scheduler, "_schedulers", ()):  # ChainedScheduler's and SequentialLR's own, since torch 1.10
        _check_scheduler(part, optimizers)
    stepped = getattr(scheduler, "optimizer", None)
    if _is_optimizer(stepped) and not any(_steps_together(stepped, optimizer) for optimizer in optimizers):
        attached = " and ".join(type(optimizer).__name__ for optimizer in optimizers)
        raise ConfigError(
            f"the scheduler belongs to another optimizer ({type(stepped).__name__}, not the {attached} "
            "that is attached), so this one's learning rate would never change; make it with "
            f"{type(scheduler).__name__}(optimizer, ...)."
        )


def check_plan(plan: object) -> None:
    """Raise unless it is a plan, and not a part of one."""
    if isinstance(plan, Plan):
        return
    if plan is None or plan is Plan:
        hint = "tg.Plan(), which is plain PyTorch, or tg.Plan(accumulate=..., clip=..., compress=...)"
    elif isinstance(plan, str | Mapping):
        hint = "tg.Plan.from_json(text)" if isinstance(plan, str) else "tg.Plan.from_config(settings)"
    elif isinstance(plan, LocalUpdates):
        hint = "tg.attach_local(model, updates), beside this call"
    else:
        hint = plan_for(plan)
    raise ConfigError(f"plan is {_kind(plan)}, not a Plan; write {hint}.")


def check_callable(name: str, function: object, of: str) -> None:
    """Raise unless it is None, or can be called with one argument."""
    if function is not None and not callable(function):
        raise ConfigError(f"{name}={function!r} must be a function {of}.")
    if function is not None and (problem := _refuses_one_argument(function)):
        raise ConfigError(f"{name} must take one argument ({problem}); it is a function {of}.")


def check_weight(weight: object) -> None:
    """Raise unless it is None, or can be called with a batch."""
    if weight is not None and not callable(weight):
        raise ConfigError(f"weight={weight!r} must be a function of a batch; write weight=lambda batch: {weight!r}.")
    if weight is not None and (problem := _refuses_one_argument(weight)):
        raise ConfigError(f"weight must take one argument, the batch ({problem}); write weight=lambda batch: n.")


def _refuses_one_argument(function: Any) -> str:
    try:
        inspect.signature(function).bind(object())
    except ValueError:  # a builtin that does not tell
        return ""
    except TypeError as error:
        return str(error)
    return ""


def checked_records(records: Any) -> tuple[Any, ...]:
    """Return the writers, if that is what they are."""
    if _is_writer(records) or isinstance(records, str) or not isinstance(records, Iterable):
        inside = "..." if not _is_writer(records) else type(records).__name__ + "(...)"
        inside = f"tg.records.Jsonl({records!r})" if isinstance(records, str) else inside
        raise ConfigError(f"records is {_kind(records)}, not a list of writers; write records=[{inside}].")
    writers = tuple(records)
    for writer in writers:
        if not _is_writer(writer):
            raise ConfigError(
                f"records holds {_kind(writer)}, which is not a writer; write records=[tg.records.Jsonl(folder)]."
            )
    return writers


def check_scaler_is_fresh(scaler: object) -> None:
    """Raise if somebody has called the scaler's `unscale_` or `step` without `update`."""
    # Private (torch 2.9 to 2.14); nothing else tells. A torch without it is not asked.
    for state in getattr(scaler, "_per_optimizer_states", {}).values():
        stage = state.get("stage")
        if stage is not None and getattr(stage, "name", "READY") != "READY":
            raise UsageError(
                "the scaler is in the middle of a step: unscale_() or step() was called and update() was not. Call "
                "scaler.update() before attach(), and none of the three after it."
            )


def required_by_step(stepped: object) -> list[str]:
    """Return the names of arguments without which `step` cannot be called; none where it does not tell.

    The class is asked and not the object, on which schedulers put a wrapper that shows `self` as an argument.
    """
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = _parameters(getattr(type(stepped), "step", None)).values()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in variadic]


def _parameters(method: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a method after `self`; none where it does not tell."""
    try:
        return dict(list(inspect.signature(method).parameters.items())[1:])
    except (TypeError, ValueError):
        return {}


def _is_optimizer(value: object) -> bool:
    is_object = not isinstance(value, type)
    return is_object and isinstance(getattr(value, "param_groups", None), list) and callable(getattr(value, "step", 0))


def _is_writer(value: object) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in WRITER_METHODS)


def _steps_together(scheduled: Any, optimizer: Any) -> bool:
    """Whether a rate that is set in one is used by the other: the same object, or a wrapper with the same groups."""
    groups = {id(group) for group in optimizer.param_groups}
    return scheduled is optimizer or any(id(group) in groups for group in scheduled.param_groups)


def _kind(value: object) -> str:
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
