"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("k = new_batch / batch", "k = batch / new_batch", "your factor is upside down"),
    Wrong("math.sqrt(k) * rate", "k * rate", "Adam's rule is a square root"),
    Wrong("2 / (rate * curvature)", "1 / (rate * curvature)", "does not even overshoot"),
    Wrong("(1 - rate * curvature) ** k", "1 - k * rate * curvature", "this is one big step"),
    Wrong("beta2**k", "beta2 ** (1 / k)", "you took the k-th root"),
    Wrong("batch * math.log(0.5)", "math.log(0.5)", "half-life in steps"),
    Wrong("2 / (rate * curvature)", "2 * batch / (rate * curvature)", "the factor between the batch sizes was asked"),
    Wrong("1 - k * rate * curvature", "abs(1 - k * rate * curvature)", "the position is negative"),
    Wrong("1 - k * rate * curvature", "1 - math.sqrt(k) * rate * curvature", "the square-root rate"),
)
