def answer(tokens, gradients):
    processes = len(tokens)
    total = sum(sum(row) for row in tokens)
    sums = [sum(n * g for n, g in zip(*rows)) for rows in zip(tokens, gradients)]
    right = sum(sums) / total
    mean_of_means = sum(sum(row) / len(row) for row in gradients) / processes
    factors = [[processes * n / total for n in row] for row in tokens]
    local_count = sum(one / sum(row) for one, row in zip(sums, tokens)) / processes
    return {"right": right, "mean_of_means": mean_of_means, "factors": factors, "local_count": local_count}
