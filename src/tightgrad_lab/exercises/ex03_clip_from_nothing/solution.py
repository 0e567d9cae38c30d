import torch


def clip_by_norm_(grads, max_norm):
    """[[Scale all tensors by one factor, in place; return the norm before.||所有张量原地乘同一个系数；返回裁剪前的范数。]]"""
    present = [grad for grad in grads if grad is not None]
    if not present:
        return 0.0
    norm = float(torch.stack([grad.norm() for grad in present]).norm())
    if norm > max_norm:
        for grad in present:
            grad.mul_(max_norm / norm)
    return norm
