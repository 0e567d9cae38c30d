import torch


class ByHand:
    """[[Data parallelism for one process of several.||多进程数据并行中的一个进程。]]"""

    def __init__(self, model, comm):
        self.parameters = list(model.parameters())
        self.comm = comm
        self.items = 0
        for parameter in self.parameters:
            parameter.grad = None
            comm.broadcast_(parameter.data, 0)

    def backward(self, loss, items):
        """[[Add the gradient of a micro-batch; communicate nothing.||加上一个微批次的梯度，不通信。]]"""
        if self.items == 0:
            for parameter in self.parameters:
                parameter.grad = None
        (loss * items).backward()
        self.items += items

    def finish(self):
        """[[Leave the mean over all items in .grad; return their number.||把全部样本的平均梯度留在 .grad 里，返回样本总数。]]"""
        if self.items == 0:
            for parameter in self.parameters:
                parameter.grad = None
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat(
            [grad.reshape(-1) for grad in grads] + [torch.tensor([float(self.items)], dtype=grads[0].dtype)]
        )
        self.comm.all_reduce_(flat)
        total = int(flat[-1])
        place = 0
        for parameter in self.parameters:
            size = parameter.numel()
            parameter.grad = (flat[place : place + size] / total).reshape(parameter.shape)
            place += size
        self.items = 0
        return total
