def top_k(vector, k):
    chosen = sorted(range(len(vector)), key=lambda i: -abs(vector[i]))[:k]
    return [x if i in chosen else 0.0 for i, x in enumerate(vector)]


def answer(gradients, k):
    residual = [0.0] * len(gradients[0])
    sent = []
    for gradient in gradients:
        wanted = [g + e for g, e in zip(gradient, residual)]
        message = top_k(wanted, k)
        residual = [v - m for v, m in zip(wanted, message)]
        sent.append(message)
    without = [sum(column) for column in zip(*(top_k(gradient, k) for gradient in gradients))]
    factor = 4 * len(residual) / (8 * k)
    return {"sent": sent, "residual": residual, "without": without, "factor": factor}
