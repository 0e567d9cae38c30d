import math


def answer(vector, levels, block):
    norm = math.sqrt(sum(v * v for v in vector))
    positions = [levels * abs(v) / norm for v in vector]
    low = [math.copysign(norm * math.floor(x) / levels, v) for x, v in zip(positions, vector)]
    chance = [x - math.floor(x) for x in positions]
    variance = (norm / levels) ** 2 * sum(p * (1 - p) for p in chance)
    bound = len(vector) * norm**2 / (4 * levels**2)
    density = (1 + 4 / block) / 8
    return {"low": low, "chance": chance, "variance": variance, "bound": bound, "density": density}
