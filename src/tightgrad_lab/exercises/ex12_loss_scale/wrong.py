"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("backward(scale).double() for", "backward(scale) for", "added in fp16"),
    Wrong("weights = weights - rate * factor * total", "weights = weights - rate * total", "nothing is clipped"),
    Wrong("for backward in window) / scale", "for backward in window)", "never unscaled"),
    Wrong("        if good == interval:\n            scale, good = scale * 2, 0\n", "", "never doubled"),
    Wrong(
        "scale, good = max(1.0, scale / 2), 0", "scale = max(1.0, scale / 2)", "begin the count of good windows anew"
    ),
    Wrong("max(1.0, scale / 2)", "scale / 2", "must not fall below 1"),
    Wrong("            continue\n", "", "makes a step all the same"),
    Wrong("scale, good = scale * 2, 0", "scale = scale * 2", "doubled only once"),
    Wrong(
        "if good == interval:\n            scale, good = scale * 2, 0",
        "if good >= interval:\n            scale = scale * 2",
        "every further window",
    ),
    Wrong(
        "sum(backward(scale).double() for backward in window) / scale",
        "sum(one.double() for one in [backward(scale) for backward in window] if one.isfinite().all()) / scale\n        total = torch.as_tensor(total)",
        "the whole window must be skipped",
    ),
)
