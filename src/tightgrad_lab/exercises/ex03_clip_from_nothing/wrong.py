"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

NORM = "float(torch.stack([grad.norm() for grad in present]).norm())"
LOOP = """    if norm > max_norm:
        for grad in present:
            grad.mul_(max_norm / norm)
    return norm
"""
EACH = """    for grad in present:
        grad.mul_(min(1.0, max_norm / max(1e-30, float(grad.norm()))))
    return norm
"""
WRONG = (
    Wrong(LOOP, EACH, "clipped by its own norm"),
    Wrong(
        "    return norm\n",
        "    return float(torch.stack([grad.norm() for grad in present]).norm())\n",
        "after clipping",
    ),
    Wrong("grad.mul_(max_norm / norm)", "grad = grad * (max_norm / norm)", "you make new tensors"),
    Wrong("    if norm > max_norm:\n", "    if norm:\n", "are lengthened"),
    Wrong(NORM, "torch.stack([grad.norm() for grad in present]).norm()", "a float of Python was asked for"),
    Wrong(NORM, "float(max(grad.abs().max() for grad in present))", "took the largest element for the norm"),
    Wrong(NORM, "float(sum(grad.norm() for grad in present))", "add their squares"),
    Wrong("    if norm > max_norm:\n", "    if True:\n", "ZeroDivisionError"),
    Wrong(
        "    present = [grad for grad in grads if grad is not None]\n",
        "    present = grads\n",
        "'NoneType' object has no attribute",
    ),
    Wrong(LOOP, "    return float(torch.nn.utils.clip_grad_norm_(present, max_norm))\n", "does the exercise for you"),
)
