import torch


class Sender:
    """[[Sends the largest elements and keeps the rest for later.||发送最大的元素，其余留到以后。]]"""

    def __init__(self, density):
        self.density = density
        self.residuals = {}

    def send(self, name, gradient):
        """[[Return the positions and the values that are sent.||返回所发送的位置和值。]]"""
        if not torch.isfinite(gradient).all():
            raise ValueError(f"the gradient of {name} is not finite")
        flat = gradient.reshape(-1)
        wanted = flat + self.residuals.get(name, torch.zeros_like(flat))
        k = max(1, int(self.density * flat.numel()))
        positions = wanted.abs().topk(k).indices
        values = wanted[positions]
        residual = wanted.clone()
        residual[positions] = 0
        self.residuals[name] = residual
        return positions, values
