import math


def answer(gradient, bound):
    norm = math.sqrt(sum(g * g for g in gradient))
    factor = min(1.0, bound / norm)
    by_norm = [factor * g for g in gradient]
    by_value = [min(bound, max(-bound, g)) for g in gradient]
    product = sum(g * v for g, v in zip(gradient, by_value))
    cosine = product / norm / math.sqrt(sum(v * v for v in by_value))
    return {"norm": norm, "factor": factor, "by_norm": by_norm, "by_value": by_value, "cosine": cosine}
