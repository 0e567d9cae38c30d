import torch


def train(weights, windows, scale, interval, max_norm, rate):
    scales, skipped, good = [], [], 0
    for window in windows:
        scales.append(scale)
        total = sum(backward(scale).double() for backward in window) / scale
        finite = bool(torch.isfinite(total).all())
        skipped.append(not finite)
        if not finite:
            scale, good = max(1.0, scale / 2), 0
            continue
        norm = float(total.norm())
        factor = min(1.0, max_norm / norm) if norm else 1.0
        weights = weights - rate * factor * total
        good += 1
        if good == interval:
            scale, good = scale * 2, 0
    return {"weights": weights, "scales": scales, "skipped": skipped}
