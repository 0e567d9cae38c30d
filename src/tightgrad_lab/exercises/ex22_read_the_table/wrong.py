"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong(
        "from statistics import mean, variance",
        "from statistics import mean, pvariance as variance",
        "divide the sum of squares by n - 1",
    ),
    Wrong(
        "(variance(plain) + variance(combined)) / len(plain)", "variance(plain) / len(plain)", "noise of both settings"
    ),
    Wrong(
        "(variance(plain) + variance(combined)) / len(plain)",
        "variance(plain) + variance(combined)",
        "scatter of single runs",
    ),
    Wrong("abs(difference) > halfwidth", "difference > halfwidth", "a loss is a difference as well"),
    Wrong(
        "math.floor(8 * (sd / gap) ** 2) + 1", "math.floor(4 * (sd / gap) ** 2) + 1", "the 2 under the root is missing"
    ),
    Wrong("math.floor(8 * (sd / gap) ** 2) + 1", "math.ceil(8 * (sd / gap) ** 2)", "one seed more"),
    Wrong("abs(difference) > halfwidth", "abs(difference) > 1.5", "seen: found"),
    Wrong("abs(difference) > halfwidth", "abs(difference) > sd", "of this case, not with sd"),
    Wrong("abs(difference) > halfwidth", "max(combined) > max(plain)", "one lucky seed decides"),
    Wrong("abs(difference) > halfwidth", "not halfwidth", "seen: it returns the same answer for every case"),
    Wrong("min(tokens, vocabulary)", "tokens", "no more rows than words"),
    Wrong("import mean, variance", "import median as mean, variance", "difference of the medians"),
    Wrong("= t * math", "= 2 * t * math", "the whole width"),
    Wrong("min(tokens, vocabulary)", "min(tokens, vocabulary) * width", "not their elements"),
)
