"""An encoder-decoder transformer (Vaswani et al. 2017, arXiv:1706.03762).

Normalised before each sublayer; learned positions; the output layer is the embedding of the target words. A decoder
state keeps keys and values, so that a further token costs one position.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad_lab.training.vocabulary import PAD

KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys(self, states: Tensor) -> KeyValue:
        """Keys and values of shape (n, heads, length, width / heads)."""
        key, value = self.key_value(states).chunk(2, dim=-1)
        return self._by_head(key), self._by_head(value)

    def forward(self, states: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor:
        """Shape (n, length, width); `mask` is true where a key may be seen, broadcast to (n, heads, length, keys)."""
        found = functional.scaled_dot_product_attention(self._by_head(self.query(states)), *keys, attn_mask=mask)
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed

    def _by_head(self, states: Tensor) -> Tensor:
        split: Tensor = states.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)


class Layer(nn.Module):
    """Self-attention and a feed-forward network; attention to the source between them, if `crosses`."""

    def __init__(self, width: int, heads: int, dropout: float, crosses: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if crosses else None
        self.forth = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if crosses else 2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        source: KeyValue | None = None,
        source_mask: Tensor | None = None,
        before: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """States of shape (n, length, width), and keys and values of all positions so far, those `before` first."""
        normed = self.norms[0](states)
        keys = self.attention.keys(normed)
        if before is not None:
            keys = (torch.cat([before[0], keys[0]], dim=2), torch.cat([before[1], keys[1]], dim=2))
        states = states + self.dropout(self.attention(normed, keys, mask))
        if self.cross is not None:
            assert source is not None
            states = states + self.dropout(self.cross(self.norms[1](states), source, source_mask))
        return states + self.dropout(self.forth(self.norms[-1](states))), keys


class State:
    """What a decoder remembers of sentences that it is in the middle of; rows are sentences.

    Attributes:
        source: each layer's keys and values of the source.
        mask: where the source may be seen, bool, shape (n, 1, 1, length).
        before: each layer's keys and values of the target so far; empty at the beginning.
    """

    def __init__(self, source: list[KeyValue], mask: Tensor, before: list[KeyValue]) -> None:
        self.source, self.mask, self.before = source, mask, before

    def rows(self, chosen: Tensor) -> "State":
        """The state of chosen rows, which may repeat."""

        def of(pairs: list[KeyValue]) -> list[KeyValue]:
            return [(key[chosen], value[chosen]) for key, value in pairs]

        return State(of(self.source), self.mask[chosen], of(self.before))


class Transformer(nn.Module):
    """Source numbers (n, s) and target numbers (n, t), padded at the end, to scores (n, t, target words)."""

    def __init__(
        self, source_words: int, target_words: int, longest: int, width: int, heads: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.longest = longest
        self.source = nn.Embedding(source_words, width, padding_idx=PAD)
        self.target = nn.Embedding(target_words, width, padding_idx=PAD)
        for embedding in (self.source, self.target):
            nn.init.normal_(embedding.weight, std=width**-0.5)
        self.source_positions = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.target_positions = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.encoder = nn.ModuleList(Layer(width, heads, dropout, crosses=False) for _ in range(layers))
        self.decoder = nn.ModuleList(Layer(width, heads, dropout, crosses=True) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.scale = width**0.5

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Scores of the token after each target token."""
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).tril()
        return self._decode(target, self.encode(source), causal)

    def encode(self, source: Tensor) -> State:
        """Read the source; the state at the beginning of the target."""
        seen = (source != PAD)[:, None, None, :]
        states = self.dropout(self.source(source) * self.scale + self.source_positions[: source.shape[1]])
        for layer in self.encoder:
            states, _ = layer(states, seen)
        states = self.norms[0](states)
        return State([_cross(layer).keys(states) for layer in self.decoder], seen, [])

    def advance(self, tokens: Tensor, state: State) -> Tensor:
        """Scores of shape (n, target words) after one more token, int64 of shape (n,); changes `state`."""
        return self._decode(tokens.unsqueeze(1), state, None)[:, -1]

    def _decode(self, target: Tensor, state: State, mask: Tensor | None) -> Tensor:
        begin = state.before[0][0].shape[2] if state.before else 0
        positions = self.target_positions[begin : begin + target.shape[1]]
        states = self.dropout(self.target(target) * self.scale + positions)
        kept = []
        for index, layer in enumerate(self.decoder):
            before = state.before[index] if state.before else None
            states, keys = layer(states, mask, state.source[index], state.mask, before)
            kept.append(keys)
        state.before = kept
        return functional.linear(self.norms[1](states), self.target.weight)


def _cross(layer: nn.Module) -> Attention:
    assert isinstance(layer, Layer)
    assert layer.cross is not None
    return layer.cross
