"""From an explanation to a sentence that a person can act on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A named mistake.

    Args:
        text: what it is.
        cure: how to mend it.
        kind: what two findings of the same mistake share, whatever their numbers; the text if it has none.
    """

    text: str
    cure: str
    kind: str = ""

    @property
    def key(self) -> str:
        return self.kind or self.text


_FACTORS = {
    "W": Cause(
        "data-parallel size: the loss is a local mean but is multiplied by the world size (or gradients are summed "
        "over ranks, and not averaged)",
        "DDP and FSDP2 average over ranks already; do not multiply a local mean by the world size. Where ranks are "
        "summed by hand, divide by their number.",
    ),
    "1/W": Cause(
        "1 / data-parallel size: the loss is divided by a total over all ranks, and the wrapper divides again",
        "multiply the loss by the world size where it is divided by a total over all ranks.",
    ),
    "K": Cause(
        "accumulation steps: the loss is not divided by the number of micro-batches",
        "divide each micro-batch's loss by the number of micro-batches in its window.",
    ),
    "K_t": Cause(
        "accumulation steps: the loss is not divided by the number of micro-batches",
        "divide each micro-batch's loss by the number of micro-batches in its window.",
    ),
    "1/K": Cause(
        "1 / accumulation steps: divided by the number of micro-batches twice",
        "divide by the number of micro-batches once (Accelerate's and Lightning's backward do it already).",
    ),
    "1/K_t": Cause(
        "1 / accumulation steps: divided by the number of micro-batches twice",
        "divide by the number of micro-batches once (Accelerate's and Lightning's backward do it already).",
    ),
    "K_t/K": Cause(
        "the last window: divided by the full K",
        "divide by the number of micro-batches that the last window really has.",
    ),
}
_BASES = {
    "micro means": Cause(
        "mean of micro-batch means: micro-batches with little weight count as much as those with much",
        "sum the losses and divide by the total weight of the window over all ranks.",
    ),
    "rank means": Cause(
        "mean of rank means: every rank divides by its own total weight",
        "divide by the total weight over all ranks, and multiply by the world size under DDP or FSDP2.",
    ),
    "means over ranks": Cause(
        "mean of micro-batch means: each micro-batch is divided by its own weight over all ranks",
        "divide by the total weight of the whole window over all ranks.",
    ),
    "last only": Cause(
        "only the last micro-batch counts: gradients are cleared inside the window",
        "call zero_grad after optimizer.step, not before every backward.",
    ),
    "last only, mean": Cause(
        "only the last micro-batch counts: gradients are cleared inside the window",
        "call zero_grad after optimizer.step, not before every backward.",
    ),
    "local": Cause(
        "ranks differ: no sync (each rank steps with its own gradient)",
        "let the last micro-batch's forward and backward run outside no_sync, on the wrapped model.",
    ),
    "local micro means": Cause(
        "ranks differ: no sync (each rank steps with its own gradient)",
        "let the last micro-batch's forward and backward run outside no_sync, on the wrapped model.",
    ),
    "local over all weights": Cause(
        "ranks differ: no sync (each rank steps with its own gradient)",
        "let the last micro-batch's forward and backward run outside no_sync, on the wrapped model.",
    ),
    "local last only": Cause(
        "ranks differ: no sync, and only the last micro-batch counts",
        "sum over ranks before optimizer.step, and call zero_grad only after it.",
    ),
    "only last synced": Cause(
        "ranks differ: only the last micro-batch's gradient is summed over ranks",
        "sum the accumulated gradient over ranks, not that of one micro-batch.",
    ),
}
_BASES["only last synced, mean"] = _BASES["only last synced"]
_LEAVE_OUT_EMPTY = (
    "divide the sum of the losses by the total weight of the window over all ranks, or leave out micro-batches whose "
    "labels are all masked."
)
_UNSCALED_TWICE = Cause(
    "the gradient is unscaled twice",
    "unscale once: scaler.unscale_(optimizer) before the clip, and scaler.step, which then leaves it alone.",
)
_CLIPS = {
    "tied twice": Cause(
        "a tied weight is clipped twice",
        "pass each parameter once: model.parameters() of the whole model leaves out duplicates.",
    ),
    "never": Cause(
        "clipping does nothing",
        "call clip_grad_norm_ after the last backward and before optimizer.step; the bound is the MAX_NORM that the "
        "audit sets, read when train runs.",
    ),
    "before division by W": Cause(
        "clip ran before the division by the world size", "clip after gradients are averaged over ranks."
    ),
    "before division by K": Cause("clip ran before the division by the accumulation steps", "divide first, then clip."),
    "before division by S": Cause("clip ran before unscale", "call scaler.unscale_(optimizer) before clipping."),
    "bound times W": Cause(
        "clip ran on gradients that were divided by the world size once too often", "clip the averaged gradient."
    ),
    "bound times K": Cause(
        "clip ran on gradients that were divided by the accumulation steps once too often", "divide once, then clip."
    ),
    "bound times S": Cause("clip ran on gradients that were unscaled twice", "unscale once, then clip."),
    "unscaled twice": _UNSCALED_TWICE,
    "in mid-window": Cause("clip in mid-window", "clip once, after the window's last backward."),
    "each micro-batch": Cause(
        "clip in mid-window (each micro-batch's gradient alone)", "clip once, after the window's last backward."
    ),
    "each rank": Cause(
        "clip ran before gradients were averaged over ranks", "clip the averaged gradient, the same on every rank."
    ),
    "each shard": Cause(
        "each rank clips by the norm of its own shard", "use the norm over all ranks (tg.clip_grad_norm_)."
    ),
    "each parameter": Cause(
        "each parameter is clipped by its own norm", "pass all parameters to one call of clip_grad_norm_."
    ),
    "1-norm": Cause("the 1-norm is limited, not the 2-norm", "use norm_type=2."),
    "inf-norm": Cause("the largest element is limited, not the 2-norm", "use norm_type=2."),
    "by value": Cause("elements are clipped one by one, which turns the gradient", "use clip_grad_norm_."),
    "sum of norms": Cause(
        "the norms of the tensors are added up, not their squares", "take the root of the sum of squares."
    ),
    "largest tensor": Cause(
        "the norm of the largest tensor is limited, not that of all of them", "take the root of the sum of squares."
    ),
    "always": Cause(
        "the gradient is scaled to the bound also where it is shorter",
        "limit the factor to 1: min(1, max_norm / norm).",
    ),
    "squared norm": Cause("the norm's square root is missing", "take the root of the sum of squares."),
}


def cause_of(explanation: str, gain: float) -> Cause:
    """The sentence for an explanation of `observe`, with the measured gain in it."""
    kind, _, rest = explanation.partition(" ")
    if kind == "clip" and rest.startswith("partly "):
        return Cause(
            f"only part of the parameters are clipped (not {rest.removeprefix('partly ')})",
            "pass all parameters to one call of clip_grad_norm_.",
        )
    if kind == "clip" and rest.startswith("groups "):
        return Cause(
            f"the parameters are clipped in {rest.removeprefix('groups ')} groups, each by its own norm",
            "pass the parameters of all groups to one call of clip_grad_norm_.",
        )
    if kind == "clip":
        return _CLIPS[rest]
    if explanation == "leaked":
        return Cause(
            "micro-batches of the epoch before enter the first window of the next: what was left over was neither "
            "stepped nor cleared",
            "step after the last micro-batch of an epoch too, or call zero_grad when an epoch begins.",
        )
    if kind in ("unheld", "frozen", "additive"):
        return _remark(kind, rest)
    if kind == "apart":
        cure = "divide the loss of every micro-batch by the number of micro-batches in its window."
        return Cause(f"micro-batches of a window are not all divided alike: {rest}", cure, "apart")
    if kind == "shares":
        return Cause(
            f"micro-batches of a window count {rest} times what they should",
            "divide the sum of the losses by the total weight, over all ranks and micro-batches.",
            "shares",
        )
    if kind == "undivided":
        return Cause(
            "a term of the loss is not divided with the rest of it: it is added to each micro-batch's loss, and so "
            "counts once per micro-batch instead of once per step",
            "divide the whole loss, (loss + term) / K, or add the term once a step.",
        )
    if explanation == "in place":
        return Cause(
            "train changes its micro-batches in place, so its gradients are not those of the data that it was given",
            "change a copy (x = x.clone()), or let make_batches make the change.",
        )
    if explanation == "empty":
        return Cause(
            "a micro-batch has no target that counts (its weight is 0): its mean is 0/0, which is NaN",
            _LEAVE_OUT_EMPTY,
        )
    if explanation == "empty counts":
        return Cause(
            "a micro-batch has no target that counts (its weight is 0), and takes part in the mean all the same",
            _LEAVE_OUT_EMPTY,
        )
    if explanation == "not finite":
        return Cause(
            "the gradient that the optimizer takes is inf or NaN",
            "look for a division by 0, for overflow in low precision, and for a bound of inf.",
        )
    if explanation == "off by one":
        return Cause(
            "the step is taken one micro-batch off: after the first of each window, not after its last",
            "step when (i + 1) % K == 0, and once more after the last micro-batch.",
        )
    if explanation.startswith("not additive "):
        return _remark("additive", explanation.removeprefix("not additive "))
    if kind == "after":
        return Cause(
            "gradients of the window before are still there: zero_grad is missing", "call zero_grad after every step."
        )
    if kind == "low":
        return Cause(
            f"gradients are added up in {explanation.rpartition(' ')[2]}",
            "keep parameters in float32 under autocast, or accumulate in float32.",
        )
    if explanation.startswith("no gradient "):
        return Cause(
            f"{explanation.removeprefix('no gradient ')}: no gradient reaches the optimizer",
            "check detach, no_grad and requires_grad on the way to these parameters.",
        )
    if kind == "parameters":
        base, factor, names = (part.strip() for part in rest.split(" | "))
        inner = _whole(base, factor, gain)
        return Cause(f"{names}: {inner.text}", inner.cure)
    base, factor = (part.strip() for part in explanation.split(" | "))
    return _whole(base, factor, gain)


def _remark(kind: str, rest: str) -> Cause:
    if kind == "unheld":
        return Cause(
            f"{rest}: no optimizer holds these parameters, which require a gradient",
            "give them to an optimizer that is made after all layers are, or set requires_grad = False.",
            "unheld",
        )
    if kind == "additive":
        return Cause(
            f"the loss of a micro-batch is not the weighted mean of its halves' losses ({rest}), so accumulation does "
            "not give the gradient of the big batch",
            "losses that compare samples of a batch (InfoNCE, balance terms) cannot be accumulated: compute them over "
            "the whole batch (cached representations), or let loss() return the weight that it is averaged over.",
            "not additive",
        )
    if rest.startswith("module "):
        names = rest.removeprefix("module ")
        return Cause(
            f"{names}: requires_grad = False was set on the module, which freezes nothing; its parameters train",
            "call module.requires_grad_(False).",
            "frozen",
        )
    return Cause(
        f"{rest}: frozen, and changed all the same",
        "set requires_grad = False before the optimizer is made and before gradients are there (or .grad = None), and "
        "do not switch it on again; if the layer is to train, let build_model leave it trainable.",
        "frozen",
    )


def _whole(base: str, factor: str, gain: float) -> Cause:
    if factor.startswith("S="):
        if float(factor.removeprefix("S=")) < 1:
            return _UNSCALED_TWICE
        return Cause(
            f"{gain:g}x: the loss scale is still in the gradient",
            "call scaler.unscale_ or step through the scaler.",
            "scaled",
        )
    if factor == "1":
        return _BASES[base]
    known = _FACTORS.get(factor) or Cause(
        f"{_words(factor)} too much", "compare with sum of losses / total weight over all ranks and micro-batches."
    )
    if factor.startswith("N"):
        known = Cause(
            "the sum of the losses is not divided by its weight",
            "divide by the total weight of the window over all ranks.",
        )
    text = f"{gain:.2f}x on {known.text}" if factor == "K_t/K" else f"{gain:.2f}x = {known.text}"
    if base == "exact" or (base == "micro means" and factor in _FACTORS):
        return Cause(text, known.cure, known.text)
    both = f"{_BASES[base].text}; and {known.text}"
    return Cause(f"{_BASES[base].text}; and {text}", f"{_BASES[base].cure} {known.cure}", both)


def _words(factor: str) -> str:
    names = {"W": "world size", "K": "accumulation steps", "K_t": "micro-batches in the window"}
    return " ".join(names.get(part, part) for part in factor.replace("/", " / ").split())
