import math
from statistics import mean, variance


def answer(plain, combined, t, sd, gap, parameters, steps, processes, vocabulary, width, tokens):
    difference = mean(combined) - mean(plain)
    halfwidth = t * math.sqrt((variance(plain) + variance(combined)) / len(plain))
    seeds = math.floor(8 * (sd / gap) ** 2) + 1
    return {
        "difference": difference,
        "halfwidth": halfwidth,
        "seen": abs(difference) > halfwidth,
        "seeds": seeds,
        "sent": 2 * (processes - 1) / processes * 4 * parameters * steps,
        "table": 4 * vocabulary * width,
        "rows": min(tokens, vocabulary),
    }
