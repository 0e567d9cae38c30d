import torch


def step(comm, gradient, residual, q):
    """[[Return the delivered gradient, the new residual and the new Q.||返回送达的梯度、新的残差和新的 Q。]]"""
    matrix = gradient + residual
    p = comm.all_reduce_(matrix @ q) / comm.world_size
    p = torch.linalg.qr(p).Q
    q = comm.all_reduce_(matrix.T @ p) / comm.world_size
    delivered = p @ q.T
    return delivered, matrix - delivered, q
