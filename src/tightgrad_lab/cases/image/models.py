"""Residual networks (He et al. 2016, arXiv:1512.03385) for small images."""

from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
WIDTHS = (16, 32, 64, 128)
CHANNELS_PER_GROUP = 8
CIFAR_WIDTHS = (16, 32, 64)
BLOCKS = 3


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = _norm(channels_out)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.around = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Shape (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        inside = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(inside)) + self.around(features))


class ResNet(nn.Module):
    """One block a width; the first convolution and every block but the first halve height and width.

    With group instead of batch normalisation (Wu and He 2018, arXiv:1803.08494): its gradient does not depend on how a
    batch is cut into micro-batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTHS[0], 3, stride=2, padding=1, bias=False), _norm(WIDTHS[0]))
        widths = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.Sequential(
            *(Block(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(len(WIDTHS)))
        )
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Shape (n, 1, 28, 28) to class scores of shape (n, 10)."""
        features = self.blocks(functional.relu(self.stem(images)))
        scores: Tensor = self.head(features.mean(dim=(2, 3)))
        return scores


class _PlainBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation; the way around has no parameters."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.stride, self.more = stride, channels_out - channels_in

    def forward(self, features: Tensor) -> Tensor:
        inside = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(features)))))
        around = functional.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return functional.relu(inside + around)


class ResNet20(nn.Module):
    """The network of 20 layers and 0.27 million parameters for CIFAR-10, as published (section 4.2).

    Its batch normalisation takes statistics over a micro-batch, so with accumulation it is not quite the same network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CIFAR_WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(CIFAR_WIDTHS[0])
        )
        blocks: list[nn.Module] = []
        before = CIFAR_WIDTHS[0]
        for width in CIFAR_WIDTHS:
            for _ in range(BLOCKS):
                blocks.append(_PlainBlock(before, width, stride=1 if before == width else 2))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Shape (n, 3, 32, 32) to class scores of shape (n, 10)."""
        features = self.blocks(functional.relu(self.stem(images)))
        scores: Tensor = self.head(features.mean(dim=(2, 3)))
        return scores


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)
