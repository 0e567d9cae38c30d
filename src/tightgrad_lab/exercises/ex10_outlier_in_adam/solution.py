import math


def after(beta1, beta2, gradient):
    return beta1 + (1 - beta1) * gradient, beta2 + (1 - beta2) * gradient**2


def answer(beta1, beta2, x, bound):
    mean, square = after(beta1, beta2, -x)
    step = mean / math.sqrt(square)
    backwards = 0
    running = mean
    while running < 0:
        backwards += 1
        running = beta1 * running + (1 - beta1)
    small, small_square = after(beta1, beta2, -min(x, bound))
    clipped = small / math.sqrt(small_square)
    least = beta1 / (1 - beta1)
    return {"mean": mean, "square": square, "step": step, "backwards": backwards, "clipped": clipped, "least": least}
