import torch


def encode(vector, block):
    """[[Return int8 codes and one float32 scale for each block.||返回 int8 编码，以及每块一个 float32 缩放系数。]]"""
    count = -(-len(vector) // block)
    padded = torch.zeros(count * block)
    padded[: len(vector)] = vector
    rows = padded.reshape(count, block)
    scales = rows.abs().amax(1) / 127 if count else torch.zeros(0)
    divisors = torch.where(scales == 0, 1.0, scales)
    codes = (rows / divisors[:, None]).round().to(torch.int8).reshape(-1)[: len(vector)]
    return codes, scales


def decode(codes, scales, block):
    """[[Return the float32 vector.||返回 float32 向量。]]"""
    return codes.float() * scales.repeat_interleave(block)[: len(codes)]
