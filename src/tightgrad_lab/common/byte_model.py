"""A small transformer that predicts the next byte of Shakespeare's plays: several experiments train it."""

import gzip
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn
from torch.nn import functional

DATA = "shakespeare_plays.txt.gz"
BYTES = 256
CONTEXT = 64
WIDTH, LAYERS, HEADS = 256, 4, 4
LEARNING_RATE = 1e-3


class ByteTransformer(nn.Module):
    """Vaswani et al. 2017 (arXiv:1706.03762) with a causal mask, normalised before each sublayer; no dropout."""

    def __init__(self, width: int = WIDTH, layers: int = LAYERS) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.positions = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """int64 of shape (n, length) to scores of the next byte, shape (n, length, 256)."""
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        states = self.embedding(text) + self.positions[:length]
        scores: Tensor = self.head(self.norm(self.encoder(states, mask=mask, is_causal=True)))
        return scores


@cache
def plays() -> Tensor:
    """The text as bytes: int64, shape (n,)."""
    packed = (files("tightgrad_lab") / "data" / DATA).read_bytes()
    return torch.frombuffer(bytearray(gzip.decompress(packed)), dtype=torch.uint8).long()


def batch(size: int, generator: torch.Generator) -> Tensor:
    """Random pieces of the plays: int64, shape (size, CONTEXT + 1)."""
    return cut(plays(), size, generator)


def cut(text: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random pieces of a text: int64, shape (size, CONTEXT + 1)."""
    starts = torch.randint(len(text) - CONTEXT - 1, (size,), generator=generator)
    return text[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]


def loss(model: nn.Module, pieces: Tensor) -> Tensor:
    """Mean cross entropy of the next byte, in nats."""
    return functional.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())
