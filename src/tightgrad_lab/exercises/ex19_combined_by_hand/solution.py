import math


def answer(true, noise, micro_batches, bound, rate, distance, processes, factor):
    one = math.sqrt(true**2 + noise**2)
    many = math.sqrt(true**2 + noise**2 / micro_batches)
    return {
        "one": one,
        "many": many,
        "factor_one": min(1.0, bound / one),
        "factor_many": min(1.0, bound / many),
        "steps": math.ceil(distance / (rate * bound)),
        "local": bound / math.sqrt(processes),
        "traffic": 1 / (micro_batches * factor),
    }
