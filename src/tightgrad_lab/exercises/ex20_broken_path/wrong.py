"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

SHARE = "gradient * items / total for gradient"
WRONG = (
    Wrong(SHARE, "gradient / len(window) / len(processes) for gradient", "weighted by 1/K and processes by 1/W"),
    Wrong(
        SHARE,
        "gradient * items / sum(n for _, n in window) / len(processes) for gradient",
        "the count covers one process only",
    ),
    Wrong(SHARE, "gradient * items for gradient", "not the mean"),
    Wrong(SHARE, "gradient * items * len(processes) / total for gradient", "the factor W belongs to an average"),
    Wrong(
        "        weights = weights - rate * min(1.0, max_norm / norms[-1]) * delivered\n",
        "        weights = weights - rate * min(1.0, max_norm / norms[-1]) * delivered\n"
        "        norms[-1] = min(norms[-1], max_norm)\n",
        "recorded after the clip",
    ),
    Wrong("rate * min(1.0, max_norm / norms[-1]) * delivered", "rate * delivered", "nothing is clipped"),
    Wrong(
        "not all(bool(torch.isfinite(gradient).all()) for gradient in gradients)",
        "any(bool(torch.isnan(gradient).any()) for gradient in gradients)",
        "infinity gets through",
    ),
    Wrong(
        "        norms.append",
        "        delivered = delivered / len(processes)\n        norms.append",
        "the messages are averaged",
    ),
    Wrong("min(1.0, max_norm / norms[-1])", "(max_norm / norms[-1])", "is lengthened"),
    Wrong("wanted = residuals[rank] + gradient", "wanted = gradient", "the residual is never added"),
    Wrong(
        "        if skipped[-1]:\n            continue\n",
        "        if skipped[-1]:\n            residuals = [e if bool(torch.isfinite(g).all()) else e + g for e, g in zip(residuals, gradients)]\n            continue\n",
        "before it is looked for",
    ),
    Wrong(
        "        delivered = torch.zeros_like",
        "        gradients = [g * min(1.0, max_norm / float(g.norm())) for g in gradients]\n        delivered = torch.zeros_like",
        "clipped once more",
    ),
    Wrong("            residuals[rank][chosen] = 0\n", "", "is sent again"),
    Wrong(
        "            continue\n",
        "            residuals = [torch.zeros_like(weights) for _ in steps[0]]\n            continue\n",
        "loses the residuals",
    ),
    Wrong(
        "            chosen =",
        "            wanted = wanted * min(1.0, max_norm / float(wanted.norm()))\n            chosen =",
        "clips gradient plus residual",
    ),
    Wrong(
        "            continue\n", "            norms.append(0.0)\n            continue\n", "skipped steps have no norm"
    ),
)
