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
    Wrong("/ scale for", "* scale for", "you multiply by the loss scale"),
    Wrong(
        "torch.stack(parts).double().mean(0) / scale",
        "(torch.stack(parts).mean(0) / scale).double()",
        "you unscale in fp16",
    ),
    Wrong(
        "torch.stack(parts).double().mean(0) / scale",
        "(torch.stack(parts) / scale).double().mean(0)",
        "you unscale in fp16",
    ),
    Wrong("rate * factor * g", "rate * g.clamp(-float(max_norm), float(max_norm))", "you clip by value"),
    Wrong("rate * factor * g", "rate * (max_norm / g.norm()).clamp(max=1.0) * g", "clipped by its own norm"),
    Wrong(
        "torch.stack([(grad * grad).sum() for grad in means]).sum().sqrt()",
        "sum(grad.norm() for grad in means)",
        "you add the norms",
    ),
    Wrong("float(norm)}", "float(norm * factor)}", "measured after the clip"),
)
