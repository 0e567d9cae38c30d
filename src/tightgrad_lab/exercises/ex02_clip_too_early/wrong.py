"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

CLIP = "        torch.nn.utils.clip_grad_norm_([weights], max_norm)\n"
NORMS = "        norms.append(float(weights.grad.norm()))\n"
WRONG = (
    Wrong("        optimizer.zero_grad()\n", "", "the gradients are never cleared"),
    Wrong(CLIP, "", "the new gradient is never clipped"),
    Wrong(NORMS, CLIP + NORMS, "your factor uses the norm after clipping"),
    Wrong(CLIP, "        weights.grad.clamp_(-max_norm, max_norm)\n", "you clip by value"),
    Wrong(CLIP, "        weights.grad.mul_(max_norm / weights.grad.norm())\n", "stretched to the bound"),
    Wrong(CLIP, CLIP + "        optimizer.zero_grad()\n", "the weights never move"),
)
