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

Several optimizers of the one model, all given to `prepare`, are one step: call `step` of each after every batch.
The prepared loader fetches a window at a time, so that the weights of all its micro-batches are known before the first
backward; a partial last window is exact. `backward`, `step` and `zero_grad` go to the pipeline; in mid-window the last
two, and clipping, do nothing. Outside a training loader's loop everything is Accelerate's own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin
from torch import Tensor, nn

from tightgrad.accumulate.weights import Weight, one
from tightgrad.clip import GlobalNorm, Value
from tightgrad.core.check import check_choice
from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import Grads
from tightgrad.integrations.accelerate_checks import (
    check_attached,
    check_backwards,
    check_even,
    check_supported,
    finish,
    full_plan,
    is_trainable,
    tells_of_break,
)
from tightgrad.integrations.accelerated_optimizer import TightOptimizer
from tightgrad.integrations.external_loop import ExternalLoop, check_clips_alike, check_takes_loss_alone, in_groups
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter

COMPATS = ("exact", "accelerate")
FOLDER = "tightgrad"


class TightAccelerator(Accelerator):
    """Is an `Accelerator` whose gradient path is TightGrad's. Every rank must make the same calls.

    Args:
        args: of `Accelerator`.
        plan: what to run. Its `accumulate` may be None: `gradient_accumulation_steps` makes one.
        weight: what a batch counts, as for `tightgrad.attach`; None counts samples.
        seed: of all random numbers that methods draw.
        records: writers of the steps' records, as for `tightgrad.attach`.
        before_clip: edits the gradients once a step, as for `tightgrad.attach`.
        compat: "exact", or "accelerate" to give Accelerate's own answer: every micro-batch counts the same, a partial
            window is divided by the full number of steps, and gradients stay in `.grad` until `zero_grad`.
        kwargs: of `Accelerator`.

    Raises:
        ConfigError: the plan's micro-batches are not `gradient_accumulation_steps`.
        UnsupportedError: `mixed_precision="fp16"`, whose scaler would scale once more; DeepSpeed, Megatron-LM, FSDP1;
            parallelism that is not over data; `sync_with_dataloader=False`.

    Examples:
        >>> import torch, tightgrad as tg
        >>> from tightgrad.integrations.accelerate import TightAccelerator
        >>> accelerator = TightAccelerator(plan=tg.Plan(), gradient_accumulation_steps=2, cpu=True)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loader = torch.utils.data.DataLoader(torch.ones(9, 4), batch_size=2)
        >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        >>> for batch in loader:
        ...     accelerator.backward(model(batch).square().mean())
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> accelerator.pipe.state.step
        3
    """

    def __init__(
        self,
        *args: Any,
        plan: Plan,
        weight: Weight | None = None,
        seed: int = 0,
        compat: str = "exact",
        records: Sequence[RecordWriter] = (),
        before_clip: Callable[[Grads], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_choice("compat", compat, COMPATS)
        check_supported(self)
        settings = self.gradient_state.plugin_kwargs
        if not settings.get("sync_with_dataloader", True):
            raise UnsupportedError(
                "GradientAccumulationPlugin(sync_with_dataloader=False) lets a window go on in the next epoch, but a "
                "window is made of one loader's batches; leave it out: a partial last window is exact here."
            )
        self.plan = full_plan(plan, self.gradient_accumulation_steps, settings)
        self.loop: ExternalLoop | None = None
        self._is_exact = compat == "exact"
        weight = weight if self._is_exact else one
        self._settings: dict[str, Any] = {
            "weight": weight,
            "seed": seed,
            "records": records,
            "before_clip": before_clip,
        }
        self._restored: Path | None = None
        self._has_told_of_break = False
        self._trained: list[nn.Module] = []
        self.register_save_state_pre_hook(lambda models, weights, folder: self._save(folder))
        self.register_load_state_pre_hook(lambda models, folder: self._load(folder))

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare as Accelerate does, and attach the plan once both the model and the optimizer are prepared."""
        prepared = super().prepare(*args, **kwargs)
        for loader in self._dataloaders:
            if isinstance(loader, DataLoaderStateMixin) and not issubclass(type(loader), _WindowsMixin):
                _by_windows(loader, self)
        for part in prepared if len(args) > 1 else (prepared,):  # a tuple, or a list under FSDP2
            if is_trainable(part) and all(part is not one for one in self._trained):
                self._trained.append(part)
        if self._trained and self._optimizers:
            self._attach()
        return prepared

    def skip_first_batches(self, dataloader: Any, num_batches: int = 0) -> Any:
        """Skip batches as Accelerate does; the loader that it gives fetches windows as well."""
        skipping = super().skip_first_batches(dataloader, num_batches)
        if issubclass(type(dataloader), _WindowsMixin):
            _by_windows(skipping, self)
        return skipping

    def _attach(self) -> None:
        if len(self._trained) > 1:
            raise UnsupportedError(
                f"{len(self._trained)} models were prepared, and TightAccelerator trains one. Write the loop with a "
                "tightgrad.attach for each model; or, where one loss trains all, prepare one module that has them."
            )
        state, optimizers = None, [optimizer.optimizer for optimizer in self._optimizers]
        if self.loop is not None:
            if list(self.loop.pipe.optimizers) == optimizers:
                return
            state = self.pipe.state_dict()  # another optimizer was prepared after the first
            self.loop.close()
        (model,) = self._trained
        self.loop = ExternalLoop(
            lambda: attach(model, optimizers, self.plan, **self._settings),
            "Call step() on the optimizer that accelerator.prepare() has given.",
        )
        for optimizer in self._optimizers:
            TightOptimizer.take(optimizer, self.loop, keeps_grads=not self._is_exact)
        if self._restored is not None:
            self.loop.load(self._restored)
        elif state is not None:
            self.pipe.load_state_dict(state)

    def free_memory(self, *objects: Any) -> Any:
        """Close the pipeline and forget it; else as Accelerate's."""
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
        """Tell whether a training loader's window is under way."""
        return self.loop is not None and self.loop.window is not None

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """Let the window decide when to synchronise, inside a training loader's loop; else as Accelerate's."""
        with nullcontext() if self.in_window else super().accumulate(*models):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Run backward through the pipeline, which scales the loss. Call it once for each batch of the loader.

        Raises:
            UsageError: it was called twice for a batch, not for the one before, outside of a prepared loader's loop, or
                before a model and an optimizer were prepared.
        """
        loop = self.loop
        if loop is None or loop.window is None:
            if self._is_exact:
                check_attached(self)
                raise UsageError(
                    "accelerator.backward(loss) was called outside of a loop over a prepared loader, where the plan "
                    "does not act. Put the training loader through accelerator.prepare(), iterate over what it gives "
                    "while the model is in train() mode, and call backward once for each batch, before "
                    "optimizer.step(). After load_state() within such a loop, leave it and begin another one, over "
                    "accelerator.skip_first_batches(loader, n)."
                )
            super().backward(loss, **kwargs)
            return
        check_takes_loss_alone((), kwargs)
        if loop.num_backwards >= loop.position:
            raise UsageError(
                "accelerator.backward(loss) was called twice for one batch of the loader; add the losses of a batch "
                "and call it once."
            )
        check_backwards(loop, loop.position - 1)
        share = len(loop.window) / self.gradient_accumulation_steps
        self.pipe.backward(loss if self._is_exact else loss * share)

    def join_uneven_inputs(self, joinables: Any, even_batches: bool | None = None) -> Any:
        """Join nothing on one process, as Accelerate does; elsewhere there is nothing to join.

        Raises:
            UnsupportedError: several processes run.
        """
        if self.num_processes > 1:
            raise UnsupportedError(
                "join_uneven_inputs is not needed, and its collectives would not match: every rank takes part in every "
                "step. Leave it out, and keep even_batches=True, by which Accelerate repeats samples; if none should "
                "be repeated, pass DataLoader(..., drop_last=True)."
            )
        return super().join_uneven_inputs(joinables, even_batches)

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Leave clipping to the plan, which must have the same.

        Returns:
            A float32 scalar that is nan until `optimizer.step()`, which fills in the norm before clipping. In
            mid-window it stays nan.
        """
        if self.loop is None or self.loop.window is None:
            norm: Tensor = super().clip_grad_norm_(parameters, max_norm, norm_type)
            return norm
        self._check_clip(GlobalNorm(float(max_norm), float(norm_type)), parameters)
        return self.loop.later_norm() if self.loop.is_last else torch.tensor(torch.nan, device="cpu")

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Leave clipping to the plan, which must have the same."""
        if self.in_window:
            self._check_clip(Value(float(clip_value)), parameters)
        else:
            super().clip_grad_value_(parameters, clip_value)

    def _check_clip(self, wanted: Clipper, parameters: Tensor | Iterable[Tensor]) -> None:
        check_clips_alike(self.plan, wanted, "the loop asks for")
        own = self.pipe.adapter.parameters
        if self.loop is not None and not self.loop.is_last and any(map(is_dtensor, own.values())):
            return  # under FSDP2 model.parameters() gives gathered ones in mid-window
        given = {id(one) for one in ([parameters] if isinstance(parameters, Tensor) else parameters)}
        left = sorted(name for name, parameter in own.items() if id(parameter) not in given)
        if left:
            raise UsageError(
                f"the loop clips {len(own) - len(left)} of the {len(own)} trainable parameters, without "
                f"{left[0]!r}, but the plan clips all of them together. Pass model.parameters(), or drop the "
                "call and take a clipper for each tensor (tg.clip.PerTensorNorm) in the plan."
            )

    def _save(self, folder: str) -> None:
        if self.loop is not None:
            self.pipe.save(Path(folder) / FOLDER)

    def _load(self, folder: str) -> None:
        path = Path(folder) / FOLDER
        if self.loop is not None:
            self.loop.load(path)
        else:
            self._restored = path


class _WindowsMixin:
    """A prepared loader that fetches a window at a time while the model trains."""

    tight: TightAccelerator
    end_of_dataloader: bool
    dl_state_dict: dict[str, Any]

    def __iter__(self) -> Iterator[Any]:
        tight, loop = self.tight, self.tight.loop
        source = super().__iter__()  # type: ignore[misc]
        if loop is None or not tight._trained[0].training or loop.window is not None:
            yield from source
            return

        check_even(tight, tight.gradient_accumulation_steps, self, tight)

        def is_full(group: list[tuple[Any, Any]]) -> bool:
            return len(group) >= tight.gradient_accumulation_steps - loop.num_done or self.end_of_dataloader

        # A loader with state (torchdata's) is to save the place of the batch that is trained on, not of the last read.
        with_places = ((batch, getattr(self, "dl_state_dict", None)) for batch in source)
        try:
            for group in in_groups(with_places, is_full):
                ends = self.end_of_dataloader
                loop.open([batch for batch, _ in group], tight.gradient_accumulation_steps)
                for batch, place in group:
                    if place is not None:
                        self.dl_state_dict = place
                    with loop.micro_batch() if tight.in_window else nullcontext():  # a load drops the window
                        self.end_of_dataloader = ends and loop.is_last
                        tight.gradient_state._set_sync_gradients(loop.is_last)
                        yield batch
                    loop.check_all_asked()
                    self.end_of_dataloader = ends
                finish(loop)
        except GeneratorExit:
            if not tight._has_told_of_break:
                tight._has_told_of_break = tells_of_break(loop, stacklevel=2)
            raise
        finally:
            loop.abandon()
            tight.gradient_state._remove_dataloader(self)


def _by_windows(loader: DataLoaderStateMixin, tight: TightAccelerator) -> None:
    """Make a loader fetch windows, and leave it the object that Accelerate knows."""
    windowed = type(type(loader).__name__, (_WindowsMixin, type(loader)), {})
    # Accelerate's loaders have a property in the way, which shows the class of the loader that they wrap.
    object.__dict__["__class__"].__set__(loader, windowed)
    loader.tight = tight
