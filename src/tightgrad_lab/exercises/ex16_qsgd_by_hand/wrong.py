"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("math.sqrt(sum(v * v for v in vector))", "max(abs(v) for v in vector)", "largest element is TernGrad"),
    Wrong("math.copysign(norm * math.floor(x) / levels, v)", "norm * math.floor(x) / levels", "the signs are lost"),
    Wrong(
        "chance = [x - math.floor(x) for x in positions]",
        "chance = [1 - x + math.floor(x) for x in positions]",
        "rounded down",
    ),
    Wrong("(norm / levels) ** 2 * sum", "sum", "in units of a level"),
    Wrong("(1 + 4 / block) / 8", "1 / 8", "the scales of the blocks take bytes"),
    Wrong("sum(p * (1 - p) for p in chance)", "sum(chance)", "not p"),
    Wrong(
        "math.copysign(norm * math.floor(x) / levels, v)",
        "norm * math.floor(math.copysign(x, v)) / levels",
        "rounded towards zero as well",
    ),
    Wrong("math.copysign(norm * math.floor(x) / levels, v)", "math.copysign(math.floor(x), v)", "numbers of levels"),
    Wrong(
        "[x - math.floor(x) for x in positions]",
        "[math.copysign(x - math.floor(x), v) for x, v in zip(positions, vector)]",
        "a chance has no sign",
    ),
)
