import torch


def encode(vector, block):
    """[[Return int8 codes and one float32 scale for each block.||返回 int8 编码，以及每块一个 float32 缩放系数。]]"""
    codes = ...
    scales = ...
    return codes, scales


def decode(codes, scales, block):
    """[[Return the float32 vector.||返回 float32 向量。]]"""
    return ...
