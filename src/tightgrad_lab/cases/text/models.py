"""Classifiers: padded word numbers of shape (n, length), lengths of shape (n,), to class scores of shape (n, classes).

What they answer does not depend on the padding, so a gradient does not depend on how texts are put together.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tightgrad_lab.training.vocabulary import PAD


class BiLSTM(nn.Module):
    """A bidirectional LSTM (Hochreiter and Schmidhuber 1997), the maximum of its states over time, a linear layer."""

    def __init__(self, num_words: int, classes: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Class scores."""
        packed = pack_padded_sequence(
            self.dropout(self.embedding(ids)), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, padding_value=-torch.inf)
        scores: Tensor = self.head(self.dropout(states.amax(dim=1)))
        return scores


class Bert(nn.Module):
    """A small encoder in the manner of BERT (Devlin et al. 2018, arXiv:1810.04805), not pretrained.

    A class token before the text, learned positions, GELU; normalised before each sublayer instead of after it.
    """

    def __init__(
        self, num_words: int, classes: int, longest: int, width: int, heads: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, width, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(longest + 1, width) * 0.02)
        self.first = nn.Parameter(torch.randn(width) * 0.02)
        nn.init.normal_(self.embedding.weight, std=0.1)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Class scores."""
        first = self.first.expand(len(ids), 1, -1)
        states = torch.cat([first, self.embedding(ids)], dim=1) + self.positions[: ids.shape[1] + 1]
        padding = torch.arange(ids.shape[1] + 1, device=ids.device) > lengths.unsqueeze(1)
        states = self.encoder(self.dropout(states), src_key_padding_mask=padding)
        scores: Tensor = self.head(self.dropout(self.norm(states[:, 0])))
        return scores
