"""Premises about model and optimizer that are looked at when attached, and what is said where one does not hold.

Ranks have the same model and the same optimizer, so rank 0 speaks for all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm  # torch 2.9 to 2.14: the base of all kinds, which has no public name

from tightgrad.accumulate import Accumulate, Window
from tightgrad.adapters.plain import Adapter, trainable_parameters, unwrap
from tightgrad.clip.fold import held_by
from tightgrad.collectives import TorchCollective
from tightgrad.core.errors import UsageError
from tightgrad.core.notices import first_few, named, warn
from tightgrad.pipeline.premises.check_loss import batch_norm_message
from tightgrad.pipeline.premises.loss_premise import LossOf, LossPremise
from tightgrad.pipeline.premises.model_watch import ModelWatch
from tightgrad.pipeline.premises.optimizer_settings import kept
from tightgrad.pipeline.premises.other_optimizers import OtherOptimizers
from tightgrad.pipeline.premises.weight_watch import WeightWatch
from tightgrad.sync.drift import check_same, has_replicas

MOST_NAMED = 5


class Premises:
    """Looks at model and optimizer when made, and again before windows.

    Args:
        model: with its wrapper.
        optimizers: of the pipeline.
        adapter: of the model.
        accumulate: whose windows are run.
        stacklevel: of warnings when made, as of `warnings.warn`; 1 is the line that makes it.
        check: gives a batch's loss, for the first window's check; None without one.
        compares: whether ranks that should hold the same are to be compared in the first window.

    Attributes:
        module: the model, with its wrapper.
        loss: looks at the loss.
        model: looks at the model's layers.

    Raises:
        UsageError: an optimizer holds none of the model's trainable parameters, or others, or those of another.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[optim.Optimizer],
        adapter: Adapter,
        accumulate: Accumulate,
        stacklevel: int,
        check: LossOf | None = None,
        *,
        compares: bool = False,
    ) -> None:
        self.module, self._optimizers, self._adapter = model, optimizers, adapter
        self.loss = LossPremise(model, adapter, accumulate, check)
        trainable = trainable_parameters(unwrap(model))
        for optimizer in optimizers:
            check_holds_some(optimizer, trainable)
        check_each_once(optimizers, trainable)
        self._named = dict(unwrap(model).named_parameters())
        held = held_by_any(optimizers)
        self._held = {name: p for name, p in adapter.parameters.items() if id(p) in held}
        check_no_unknown(optimizers, trainable, self._named)
        speaks = adapter.collective.rank == 0
        if speaks:
            warn_of_unheld(optimizers, trainable, adapter.parameters, stacklevel + 1)
        self._batch_norm = BatchNormNotice(model, several=accumulate.several_backwards, speaks=speaks)
        self._batch_norm.look(stacklevel + 1)
        self._others = OtherOptimizers(optimizers, self._held, speaks=speaks)
        # Ranks that are threads draw weights from one generator, in any order: only processes are compared.
        group = getattr(adapter.collective, "group", None)
        compares = compares and group is not None and has_replicas(adapter.parameters, adapter.collective.world_size)
        self._ranks = TorchCollective(group) if compares else None  # its own traffic: none of training's
        self._is_first = True
        self.model = ModelWatch(unwrap(model), adapter)
        self.weights = WeightWatch(adapter.parameters, model.modules(), optimizers)

    def compare_ranks(self, window: Window[Any]) -> None:
        """Compare the ranks' weights before the first step. Collective: every rank must call it, with each window."""
        is_first, self._is_first = self._is_first, False
        if self._ranks is not None and is_first and window.begun_everywhere():
            check_same(self._held, kept(self._optimizers, self._held), 0, self._ranks)

    def compare_again(self, window: Window[Any], step: int) -> None:
        """Compare the ranks' weights where only some have written to them. Collective: every rank must call it."""
        if self._ranks is not None and window.batches.written_on_some:
            check_same(self._held, kept(self._optimizers, self._held), step, self._ranks)

    def before_window(self) -> None:
        """Look at what may have changed since attach."""
        self.model.look()
        check_no_unknown(self._optimizers, self._adapter.parameters, self._named)
        check_still_held(self._optimizers, self._held)
        self._others.look(stacklevel=4)
        self._batch_norm.look(stacklevel=4)

    def before_backward(self, losses: Mapping[str, Tensor], micro_batches: int) -> None:
        """Look at what may have changed since the window's backward before, and at the loop's first losses."""
        self.loss.look(losses, micro_batches, stacklevel=4)
        self.model.before_backward(stacklevel=5)
        self.weights.look(stacklevel=5)

    def look_again(self) -> None:
        """Look at what may have changed since the window began."""
        check_no_unknown(self._optimizers, self._adapter.parameters, self._named)
        self.weights.look_at_step(stacklevel=5)
        self._batch_norm.look(stacklevel=4)


class BatchNormNotice:
    """Warns, once, of layers that normalise each micro-batch by its own statistics.

    Args:
        model: with or without such layers.
        several: whether a window may have more than one micro-batch; nothing is said otherwise.
        speaks: whether this rank warns.
    """

    def __init__(self, model: nn.Module, *, several: bool, speaks: bool) -> None:
        watched = several and speaks
        self._layers = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)] if watched else []

    def look(self, stacklevel: int) -> None:
        """Warn if there are such layers, and never again. They may be frozen now and train later."""
        using = [name for name, layer in self._layers if layer.training or layer.running_mean is None]
        if not using:
            return
        self._layers = []
        warn(batch_norm_message(using), stacklevel + 1)


def held_by_any(optimizers: Sequence[optim.Optimizer]) -> frozenset[int]:
    """Return the identities of the parameters that any of the optimizers holds."""
    return frozenset[int]().union(*map(held_by, optimizers))


def held_names(optimizers: Sequence[optim.Optimizer], parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Return the names of the parameters that each optimizer holds now."""
    return [[name for name, p in parameters.items() if id(p) in one] for one in map(held_by, optimizers)]


def check_no_unknown(
    optimizers: Sequence[optim.Optimizer],
    parameters: Mapping[str, nn.Parameter],
    model_parameters: Mapping[str, nn.Parameter],
) -> None:
    """Raise `UsageError` if an optimizer holds a trainable tensor that is not among `parameters`.

    Args:
        optimizers: of the pipeline.
        parameters: that the pipeline knows, by name.
        model_parameters: all of the model's at attach, by name.
    """
    known = {id(parameter) for parameter in parameters.values()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = [parameter for group in groups for parameter in group["params"]]
    unknown = [parameter for parameter in held if parameter.requires_grad and id(parameter) not in known]
    if not unknown:
        return
    names = {id(parameter): name for name, parameter in model_parameters.items()}
    holder = "the optimizer" if len(optimizers) == 1 else "an optimizer"
    late = [names[id(parameter)] for parameter in unknown if id(parameter) in names]
    if late:
        raise UsageError(
            f"attach() has left out {named(late)}, which were frozen or were not yet in the optimizer: their "
            "gradients would be neither summed over ranks nor clipped nor cleared. Unfreeze before attach() and give "
            "all parameters to the optimizer before it, or call attach() again between two windows."
        )
    raise UsageError(
        f"{holder} holds {len(unknown)} parameter(s) that attach() did not see in the model (shapes "
        f"{first_few((str(tuple(p.shape)) for p in unknown), 3)}): their gradients would be neither summed "
        "over ranks nor clipped nor cleared. If they are float32 copies of the model's parameters, pass an optimizer "
        "over model.parameters() (bfloat16 gradients are accumulated and clipped in float32 here), or keep the model "
        "in float32 and train it under torch.autocast. If they belong to another module, or to none, attach a module "
        "that has them all, such as nn.ModuleList([model, nn.ParameterList([temperature])]). If they were added to the "
        "model later, call attach() again. If the model is in fully_shard, make the optimizer before its first "
        "forward, after which model.parameters() may give gathered ones; or call model.reshard() first."
    )


def check_still_held(optimizers: Sequence[optim.Optimizer], held: Mapping[str, nn.Parameter]) -> None:
    """Raise `UsageError` if a trainable parameter is in no optimizer any longer.

    Args:
        optimizers: of the pipeline.
        held: what they held at attach, by name.
    """
    now = held_by_any(optimizers)
    lost = [name for name, parameter in held.items() if id(parameter) not in now and parameter.requires_grad]
    if lost:
        raise UsageError(
            f"{named(lost, MOST_NAMED)} was taken out of the optimizer since attach(), and would still count in the "
            "norm and the clip without being stepped. Freeze it with requires_grad_(False), set its group's lr to 0, "
            "or call attach() again."
        )


def check_each_once(optimizers: Sequence[optim.Optimizer], trainable: Mapping[str, nn.Parameter]) -> None:
    """Raise `UsageError` if two optimizers hold the same trainable parameter."""
    for name, parameter in trainable.items():
        holders = [optimizer for optimizer in optimizers if id(parameter) in held_by(optimizer)]
        if len(holders) > 1:
            kinds = " and ".join(type(optimizer).__name__ for optimizer in holders)
            raise UsageError(
                f"{name!r} is in {len(holders)} of the optimizers ({kinds}), which would each change it in every step; "
                "give each parameter to one of them."
            )


def check_holds_some(optimizer: optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> None:
    """Raise `UsageError` if the optimizer holds none of the model's trainable parameters."""
    if trainable and held_by(optimizer).isdisjoint(map(id, trainable.values())):
        raise UsageError(
            f"the optimizer ({type(optimizer).__name__}) holds none of the model's {len(trainable)} trainable "
            f"parameters, such as {next(iter(trainable))!r}: no step would change them. Make it with parameters of "
            "this model, after fully_shard, a copy or a move has replaced them. If it holds float32 copies of them: "
            "gradients of bfloat16 are accumulated and clipped in float32 here, or keep the model in float32 and train "
            "it under torch.autocast."
        )


def warn_of_unheld(
    optimizers: Sequence[optim.Optimizer],
    trainable: Mapping[str, nn.Parameter],
    handled: Mapping[str, nn.Parameter],
    stacklevel: int,
) -> None:
    """Warn of trainable parameters that no optimizer holds.

    Args:
        optimizers: of the pipeline.
        trainable: parameters of the model by name.
        handled: those whose gradients the pipeline takes.
        stacklevel: as of `warnings.warn`.
    """
    held = held_by_any(optimizers)
    unheld = [name for name, parameter in trainable.items() if id(parameter) not in held]
    if not unheld:
        return
    one = len(unheld) == 1
    holder = "the optimizer" if len(optimizers) == 1 else "any of the optimizers"
    them = "it" if one else "them"
    if handled.keys().isdisjoint(unheld):
        follows = (
            f"{'Its gradient is' if one else 'Their gradients are'} left out of the norm, the clip and compression, "
            "not summed over ranks and not cleared"
        )
    else:
        follows = (
            f"{'Its gradient still counts' if one else 'Their gradients still count'} in the norm and the clip, since "
            f"the wrapper sums {them} over ranks as well, and pipe.step() clears {them}"
        )
    warn(
        f"{len(unheld)} trainable parameter{' is' if one else 's are'} not in {holder}: {named(unheld, MOST_NAMED)}. "
        f"pipe.step() never changes {them}. {follows}. Give {them} to the optimizer, or freeze {them} with "
        "requires_grad_(False).",
        stacklevel + 1,
    )
