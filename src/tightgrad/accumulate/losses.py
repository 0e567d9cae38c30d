"""What `backward` is given: losses, checked, and scaled so that gradients add up to G = (1 / N) sum of grad L."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tightgrad.accumulate.settings import Accumulate
from tightgrad.core.errors import UsageError


def checked_losses(
    loss: Tensor | Mapping[str, Tensor], names: tuple[str, ...], options: Mapping[str, object] | None = None
) -> dict[str, Tensor]:
    """Return one scalar for each of the plan's losses; a single tensor is the first.

    Raises:
        UsageError: one is missing, unknown, not a tensor, or not a scalar; or there are options of torch's backward.
    """
    if options:
        raise UsageError(
            f"pipe.backward(loss) has no {' or '.join(options)}: a micro-batch has one backward, which frees its "
            "graph. Add losses that share a graph, and call it once. If the loop needs other gradients as well, call "
            "torch.autograd.grad(loss, tensors, retain_graph=True) before it, which does not write to .grad."
        )
    given: Any = loss
    if not isinstance(given, Tensor | Mapping):
        raise UsageError(f"backward() takes the loss, a scalar tensor, and got {_kind(given)}. {_hint(given)}")
    losses: dict[str, Any] = {names[0]: given} if isinstance(given, Tensor) else dict(given)
    if losses.keys() != set(names):
        hint = f" {_hint(given)}" if len(names) == 1 else f" Write pipe.backward({_example(names)})."
        raise UsageError(
            f"backward() got the losses {sorted(map(str, losses))}, but the plan's losses are {sorted(names)}.{hint}"
        )
    for name, value in losses.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"{name} is {_kind(value)}, not a tensor. {_hint(value)}")
        if value.numel() != 1:
            raise UsageError(
                f"{name} has the shape {tuple(value.shape)}; reduce it to a scalar before backward(), with .mean() or "
                "with .sum() as the plan's loss_reduction says."
            )
        if value.is_complex():
            raise UsageError(f"{name} is complex; backward() needs a real loss, such as {name}.abs().")
    return losses


def scaled_loss(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    totals: Mapping[str, float],
    accumulate: Accumulate,
    factor: float,
) -> Tensor:
    """Return the sum of losses whose gradients, summed over micro-batches and ranks, are the target.

    Args:
        losses: of one micro-batch, by name.
        weights: of this micro-batch; a loss without weight is left out, if any has some.
        totals: N for each loss.
        accumulate: how a loss is reduced.
        factor: on top: what the wrapper divides by, and the loss scale.
    """
    terms = [loss * (accumulate.loss_factor(weights[name], totals[name]) * factor) for name, loss in losses.items()]
    return sum(terms[1:], start=terms[0])


def check_has_gradient(loss: Tensor) -> None:
    """Raise `UsageError` if the loss depends on nothing that requires a gradient."""
    if loss.requires_grad:
        return
    raise UsageError(
        "the loss does not depend on any trainable parameter (it has no grad_fn). Was it detached, made with "
        "torch.tensor(...) or .item(), computed under torch.no_grad(), or is everything that it needs frozen? Give "
        "backward() the loss as the forward computed it."
    )


def _kind(value: object) -> str:
    if value is None or isinstance(value, str):
        return repr(value)
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{_article(type(value).__name__)} {type(value).__name__}{size}"


def _hint(value: Any) -> str:
    """What to write instead."""
    if value is None:
        return (
            "A model of transformers returns a loss only if it is given labels; a loss function has to return the "
            "loss. To leave a micro-batch out, call pipe.skip() in a loop of your own, or give it the weight 0 in "
            "attach(weight=...)."
        )
    if isinstance(value, Mapping):
        name = next((key for key in value if "loss" in str(key)), None)
        return f"Write pipe.backward(output[{name!r}])." if name is not None else "Write pipe.backward(loss)."
    if isinstance(getattr(value, "loss", None), Tensor):
        return "Write pipe.backward(output.loss)."
    if isinstance(value, tuple | list):
        place = next((i for i, v in enumerate(value) if isinstance(v, Tensor) and v.numel() == 1), 0)
        return f"Write pipe.backward(output[{place}]), with the element that is the loss; add several before."
    return "Write pipe.backward(loss) with the tensor that the forward computed, without .item() or float()."


def _example(names: tuple[str, ...]) -> str:
    return "{" + ", ".join(f'"{name}": ...' for name in names) + "}"


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"
