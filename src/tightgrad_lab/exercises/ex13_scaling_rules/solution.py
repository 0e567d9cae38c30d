import math


def answer(rate, curvature, batch, new_batch, beta2):
    k = new_batch / batch
    return {
        "linear": k * rate,
        "root": math.sqrt(k) * rate,
        "limit": 2 / (rate * curvature),
        "small": (1 - rate * curvature) ** k,
        "big": 1 - k * rate * curvature,
        "beta2": beta2**k,
        "half_life": batch * math.log(0.5) / math.log(beta2),
    }
