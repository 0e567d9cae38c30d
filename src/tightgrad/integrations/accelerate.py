"""Hugging Face Accelerate: the same loop, with `TightAccelerator` in the place of `Accelerator`.

    accelerator = TightAccelerator(plan=plan, weight=num_tokens, gradient_accumulation_steps=8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_fn(model(batch["inputs"]), batch["labels"]))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

The prepared loader fetches a window at a time, so that the weights of all its micro-batches are known before the first
backward; a partial last window is exact. `backward`, `step` and `zero_grad` go to the pipeline; in mid-window the last
two, and clipping, do nothing. Outside a training loader's loop everything is Accelerate's own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin
from torch import Tensor, nn

from tightgrad.accumulate.weights import Weight
from tightgrad.clip import GlobalNorm, Value
from tightgrad.core.check import check_choice
from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.protocols import Clipper
from tightgrad.integrations.accelerate_checks import check_steps, check_supported, finish, full_plan
from tightgrad.integrations.accelerated_optimizer import TightOptimizer
from tightgrad.integrations.foreign import ForeignLoop, clips_alike, missing_backward
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.plan.plan import Plan

COMPATS = ("exact", "accelerate")
FOLDER = "tightgrad"
OUTSIDE = (
    "accelerator.backward(loss) was called outside of a loop over a prepared loader, where the plan does not act. Put "
    "the training loader through accelerator.prepare(), iterate over what it gives while the model is in train() mode, "
    "and call backward once for each batch, before optimizer.step()."
)


class TightAccelerator(Accelerator):
    """An `Accelerator` whose gradient path is TightGrad's. Every rank must make the same calls.

    Args:
        args: of `Accelerator`.
        plan: what to run. Its `accumulate` may be None: `gradient_accumulation_steps` makes one.
        weight: what a batch counts, as for `tightgrad.attach`; None counts samples.
        seed: of all random numbers that methods draw.
        compat: "exact", or "accelerate" to give Accelerate's own answer: every micro-batch counts the same, a partial
            window is divided by the full number of steps, and gradients stay in `.grad` until `zero_grad`.
        kwargs: of `Accelerator`.

    Raises:
        ConfigError: the plan's micro-batches are not `gradient_accumulation_steps`.
        UnsupportedError: `mixed_precision="fp16"`, whose scaler would scale once more; DeepSpeed, Megatron-LM, FSDP1;
            parallelism that is not over data; `sync_with_dataloader=False`.
    """

    def __init__(
        self, *args: Any, plan: Plan, weight: Weight | None = None, seed: int = 0, compat: str = "exact", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_choice("compat", compat, COMPATS)
        check_supported(self)
        self.plan = full_plan(plan, self)
        self.loop: ForeignLoop | None = None
        self._compat = compat
        self._weight = _one if compat == "accelerate" else weight
        self._seed = seed
        self._restored: Path | None = None
        self._trained: list[nn.Module] = []
        self.register_save_state_pre_hook(lambda models, weights, folder: self._save(folder))
        self.register_load_state_pre_hook(lambda models, folder: self._load(folder))

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """As Accelerate's; attaches the plan once both the model and the optimizer are prepared."""
        prepared = super().prepare(*args, **kwargs)
        for loader in self._dataloaders:
            if isinstance(loader, DataLoaderStateMixin) and not issubclass(type(loader), _WindowsMixin):
                _by_windows(loader, self)
        for part in prepared if isinstance(prepared, tuple) else (prepared,):
            if isinstance(part, nn.Module):
                self._trained.append(part)
        if self._trained and self._optimizers:
            self._attach()
        return prepared

    def skip_first_batches(self, dataloader: Any, num_batches: int = 0) -> Any:
        """As Accelerate's; the loader that it gives fetches windows as well."""
        skipping = super().skip_first_batches(dataloader, num_batches)
        if issubclass(type(dataloader), _WindowsMixin):
            _by_windows(skipping, self)
        return skipping

    def _attach(self) -> None:
        if len(self._trained) > 1 or len(self._optimizers) > 1:
            raise UnsupportedError(
                f"{len(self._trained)} models and {len(self._optimizers)} optimizers were prepared; TightAccelerator "
                "takes one of each. Use tightgrad.attach for several."
            )
        if self.loop is not None:
            return
        optimizer = self._optimizers[0]
        pipe = attach(self._trained[0], optimizer.optimizer, self.plan, weight=self._weight, seed=self._seed)
        self.loop = ForeignLoop(pipe)
        TightOptimizer.take(optimizer, self.loop, keeps_grads=self._compat == "accelerate")
        if self._restored is not None:
            self.pipe.load(self._restored)

    def free_memory(self, *objects: Any) -> Any:
        """As Accelerate's; closes the pipeline and forgets it."""
        if self.loop is not None:
            self.loop.close()
        self._trained, self.loop = [], None
        return super().free_memory(*objects)

    @property
    def pipe(self) -> GradientPipeline:
        """Return the pipeline that `prepare` attached.

        Raises:
            UsageError: model and optimizer are not prepared yet.
        """
        if self.loop is None:
            raise UsageError("there is no pipeline before model and optimizer are prepared.")
        return self.loop.pipe

    @property
    def in_window(self) -> bool:
        """Whether a training loader's window is under way."""
        return self.loop is not None and self.loop.is_open

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """Inside a training loader's loop the window decides when to synchronise."""
        context: AbstractContextManager[None] = super().accumulate(*models)
        if self.in_window:
            yield
        else:
            with context:
                yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Scale and run backward, once for each batch of the loader."""
        if self.loop is None or not self.loop.is_open:
            if self.loop is not None and self._compat == "exact":
                raise UsageError(OUTSIDE)
            super().backward(loss, **kwargs)
            return
        if kwargs:
            raise UnsupportedError(f"accelerator.backward() takes no {', '.join(kwargs)} here; leave them out.")
        self._check_turn(self.loop)
        if self._compat == "accelerate":
            loss = loss * (self.loop.num_micro_batches / self.gradient_accumulation_steps)
        self.pipe.backward(loss)

    def _check_turn(self, loop: ForeignLoop) -> None:
        if loop.num_backwards >= loop.position:
            raise UsageError(
                "accelerator.backward(loss) was called twice for one batch of the loader; add the losses of a batch "
                "and call it once."
            )
        if loop.num_backwards < loop.position - 1:
            raise UsageError(missing_backward(loop))

    def join_uneven_inputs(self, joinables: Any, even_batches: bool | None = None) -> Any:
        """As Accelerate's on one process; elsewhere there is nothing to join."""
        if self.num_processes > 1:
            raise UnsupportedError(
                "join_uneven_inputs is not needed, and its collectives would not match: a rank whose loader ends first "
                "takes part with nothing, and the gradient is exact. Leave it out, and pass Accelerator("
                "dataloader_config=DataLoaderConfiguration(even_batches=False)) if batches should not be repeated."
            )
        return super().join_uneven_inputs(joinables, even_batches)

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Leave clipping to the plan, which must have the same.

        Returns:
            A float32 scalar that is nan until `optimizer.step()`, which fills in the norm before clipping. In
            mid-window it stays nan.
        """
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if self.loop is None or not self.loop.is_open:
            norm: Tensor = super().clip_grad_norm_(parameters, max_norm, norm_type)
            return norm
        self._check_clip(GlobalNorm(float(max_norm), float(norm_type)), parameters)
        return self.loop.later_norm() if self.loop.is_last else torch.tensor(torch.nan)

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Leave clipping to the plan, which must have the same."""
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if self.in_window:
            self._check_clip(Value(float(clip_value)), parameters)
        else:
            super().clip_grad_value_(parameters, clip_value)

    def _check_clip(self, wanted: Clipper, parameters: list[Tensor]) -> None:
        if not clips_alike(self.plan.clip, wanted):
            raise UsageError(
                f"the loop asks for {wanted}, but the plan clips with {self.plan.clip}: gradients are clipped once, "
                "by the plan, after they are summed. Put the same clipping into the plan, or drop the call."
            )
        own = self.pipe.adapter.parameters
        left = own.keys() - {name for name, one in own.items() if any(one is given for given in parameters)}
        if left:
            raise UsageError(
                f"the loop clips {len(own) - len(left)} of the {len(own)} trainable parameters, without "
                f"{sorted(left)[0]!r}, but the plan clips all of them together. Pass model.parameters(), or drop the "
                "call and take a clipper for each tensor (tg.clip.PerTensorNorm) in the plan."
            )

    def _save(self, folder: str) -> None:
        if self.loop is not None:
            self.pipe.save(Path(folder) / FOLDER)

    def _load(self, folder: str) -> None:
        path = Path(folder) / FOLDER
        if self.loop is not None:
            self.pipe.load(path)
        elif path.exists():
            self._restored = path


class _WindowsMixin:
    """A prepared loader that fetches a window at a time while the model trains."""

    tight: TightAccelerator

    def __iter__(self) -> Iterator[Any]:
        loop = self.tight.loop
        if loop is None or not self.tight._trained[0].training or loop.is_open:
            yield from super().__iter__()  # type: ignore[misc]
            return
        check_steps(self.tight.plan, self.tight.gradient_accumulation_steps)
        state = self.tight.gradient_state
        source = super().__iter__()  # type: ignore[misc]
        steps = self.tight.gradient_accumulation_steps
        try:
            for batches, ends in _lots(source, steps, lambda: bool(self.end_of_dataloader)):
                loop.open(batches)
                for batch in batches:
                    with loop.micro_batch():
                        self.end_of_dataloader = ends and loop.is_last
                        state._set_sync_gradients(loop.is_last)
                        yield batch
                    self.end_of_dataloader = ends
                finish(loop)
        finally:
            loop.abandon()
            state._remove_dataloader(self)


def _by_windows(loader: DataLoaderStateMixin, tight: TightAccelerator) -> None:
    """Make a loader fetch windows, and leave it the object that Accelerate knows."""
    windowed = type(type(loader).__name__, (_WindowsMixin, type(loader)), {})
    # Accelerate's loaders have a property in the way, which shows the class of the loader that they wrap.
    object.__dict__["__class__"].__set__(loader, windowed)
    loader.tight = tight


def _lots(batches: Iterable[Any], most: int, ended: Callable[[], bool]) -> Iterator[tuple[list[Any], bool]]:
    """Up to `most` batches at once, and whether they are the last."""
    lot: list[Any] = []
    for batch in batches:
        lot.append(batch)
        if len(lot) == most or ended():
            yield lot, ended()
            lot = []
    if lot:
        yield lot, True


def _one(batch: Any) -> float:
    return 1.0
