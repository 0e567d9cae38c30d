def clip_by_norm_(grads, max_norm):
    """[[Scale all tensors by one factor, in place; return the norm before.||所有张量原地乘同一个系数；返回裁剪前的范数。]]"""
    norm = ...
    return norm
