import torch


def step(comm, gradient, residual, q):
    """[[Return the delivered gradient, the new residual and the new Q.||返回送达的梯度、新的残差和新的 Q。]]"""
    delivered = ...
    return delivered, residual, q
