"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("math.sqrt(sum(g * g for g in gradient))", "sum(g * g for g in gradient)", "take its square root"),
    Wrong("math.sqrt(sum(g * g for g in gradient))", "sum(abs(g) for g in gradient)", "you added the absolute values"),
    Wrong("min(1.0, bound / norm)", "bound / norm", "must never exceed 1"),
    Wrong("min(bound, max(-bound, g))", "min(bound, g)", "negative elements below -bound pass uncut"),
    Wrong("math.sqrt(sum(v * v for v in by_value))", "bound", "as if it were the length of by_value"),
    Wrong("factor = min(1.0, bound / norm)", "factor = 0.5", "the same answer for every case"),
    Wrong("min(1.0, bound / norm)", "max(1.0, norm / bound)", "upside down"),
)
