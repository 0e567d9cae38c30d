import torch


class ByHand:
    """[[Data parallelism for one process of several.||多进程数据并行中的一个进程。]]"""

    def __init__(self, model, comm):
        self.model = model
        self.comm = comm

    def backward(self, loss, items):
        """[[Add the gradient of a micro-batch; communicate nothing.||加上一个微批次的梯度，不通信。]]"""
        loss.backward()

    def finish(self):
        """[[Leave the mean over all items in .grad; return their number.||把全部样本的平均梯度留在 .grad 里，返回样本总数。]]"""
        total = ...
        return total
