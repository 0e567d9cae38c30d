"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

MEAN = "torch.stack(parts).double().mean(0) / scale"
WRONG = (
    Wrong(MEAN, "torch.stack(parts).double().mean(0)", "never unscaled"),
    Wrong("rate * factor * g for", "rate * g for", "nothing is clipped"),
    Wrong(MEAN, "torch.stack(parts).double().sum(0) / scale", "not their mean"),
    Wrong(
        "(grad * grad).sum() for grad in means",
        "(scale * grad).half().square().sum().double() / scale**2 for grad in means",
        "formed in fp16",
    ),
    Wrong(
        "[w - rate * factor * g for w, g in zip(weights, means)]",
        "[w - rate * factor * g / scale for w, g in zip(weights, means)]",
        "entry 0: found",
    ),
    Wrong("    norm = torch", "    means = [grad * scale for grad in means]\n    norm = torch", "never unscaled"),
)
