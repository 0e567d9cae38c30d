import torch
from torch.nn import functional as F


def loss_of(model, pieces):
    """[[Mean loss over the pieces of a micro-batch.||一个微批次各段的平均损失。]]"""
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def gradient_of(model, window, items):
    """[[The flat gradient of this process's share.||本进程那一份的梯度，已展平。]]"""
    model.zero_grad()
    for pieces in window:
        (loss_of(model, pieces) * len(pieces) / items).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


def move(model, change):
    """[[Add a flat vector to the weights.||把展平的向量加到权重上。]]"""
    place = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += change[place : place + parameter.numel()].reshape(parameter.shape)
            place += parameter.numel()


def train(comm, model, steps, density, max_norm, rate):
    residual = 0
    norms = []
    for window in steps:
        items = sum(len(pieces) for pieces in window)
        gradient = gradient_of(model, window, items) / comm.world_size
        gradient = gradient * min(1.0, max_norm / float(gradient.norm()))
        wanted = gradient + residual
        chosen = wanted.abs().topk(max(1, int(density * len(wanted)))).indices
        message = torch.zeros_like(wanted)
        message[chosen] = wanted[chosen].float().double()
        residual = wanted - message
        delivered = comm.all_reduce_(message)
        norms.append(float(delivered.norm()))
        move(model, -rate * delivered)
    return norms
