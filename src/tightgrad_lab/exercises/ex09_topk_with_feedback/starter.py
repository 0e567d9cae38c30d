import torch


class Sender:
    """[[Sends the largest elements and keeps the rest for later.||发送最大的元素，其余留到以后。]]"""

    def __init__(self, density):
        self.density = density

    def send(self, name, gradient):
        """[[Return the positions and the values that are sent.||返回所发送的位置和值。]]"""
        positions = ...
        values = ...
        return positions, values
