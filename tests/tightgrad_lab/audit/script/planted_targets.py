"""Faults of the targets of token sequences, and loops that are right (fine_*): `python planted_targets.py NAME`."""

import sys

import torch
import torch.nn.functional as F
from planted import LM, K, T, V, loop, next_token, padded, shifts_itself, tokens
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader


def padding_counts():
    loop(lambda place: next_token(padded()), model=LM)


def padding_at_the_left():
    loop(lambda place: next_token(padded().flip(1)), model=LM)


def padding_of_tags():
    def one(place):
        found = padded()
        tags = (found % 5 + 1) * (found != 0)
        return F.cross_entropy(LM(found)[..., :6].transpose(1, 2), tags) / K

    loop(one, model=LM)


def padding_by_embedding():
    LM[0].padding_idx = 0
    loop(lambda place: next_token(padded(1)), model=LM)


def padding_as_batches():
    def gather(rows):
        return pad_sequence(rows)

    rows = [torch.randint(1, V, (length,)) for _ in range(24) for length in (4, 6, T)]
    batches = iter(DataLoader(rows, batch_size=3, collate_fn=gather))

    def one(place):
        found = next(batches)
        return F.cross_entropy(LM(found[:-1]).flatten(0, 1), found[1:].flatten()) / K

    loop(one, model=LM)


def fine_padding_ignored():
    loop(lambda place: next_token(padded(), ignore_index=0), model=LM)


def fine_padding_masked():
    def one(place):
        found = padded()
        each = F.cross_entropy(LM(found[:, :-1]).transpose(1, 2), found[:, 1:], reduction="none")
        mask = found[:, 1:] != 0
        return (each * mask).sum() / mask.sum() / K

    loop(one, model=LM)


def fine_end_of_text_is_padding():
    """The first mark of the end is a target, the others are not."""

    def one(place):
        found = padded()
        labels = found.clone()
        labels[found == 0] = -100
        for row in range(len(found)):
            ends = (found[row] == 0).nonzero()
            if len(ends):
                labels[row, ends[0]] = 0
        return F.cross_entropy(LM(found[:, :-1]).flatten(0, 1), labels[:, 1:].flatten()) / K

    loop(one, model=LM)


def fine_rows_of_one_length():
    loop(lambda place: next_token(tokens(low=0)), model=LM)


def back_by_index():
    def one(place):
        found = tokens()
        labels = found.clone()
        labels[:, :4] = -100
        labels[labels == -100] = 0
        return F.cross_entropy(LM(found[:, :-1]).flatten(0, 1), labels[:, 1:].flatten()) / K

    loop(one, model=LM)


def back_by_where():
    def one(place):
        found = tokens()
        labels = found.masked_fill(torch.arange(T) < 4, -100)
        labels = torch.where(labels == -100, 0, labels)
        return F.cross_entropy(LM(found[:, :-1]).flatten(0, 1), labels[:, 1:].reshape(-1)) / K

    loop(one, model=LM)


def fine_spans():
    """All labels are ignored at first, and those of the answer are given back."""

    def one(place):
        found = tokens()
        labels = torch.full_like(found, -100)
        for row in range(len(found)):
            labels[row, 4:] = found[row, 4:]
        return F.cross_entropy(LM(found[:, :-1]).flatten(0, 1), labels[:, 1:].flatten()) / K

    loop(one, model=LM)


def fine_back_in_a_copy():
    def one(place):
        found = tokens()
        labels = found.masked_fill(torch.arange(T) < 4, -100)
        labels.clamp(min=0).tolist()
        return F.cross_entropy(LM(found[:, :-1]).flatten(0, 1), labels[:, 1:].reshape(-1)) / K

    loop(one, model=LM)


def shifted_twice():
    def one(place):
        found = tokens()
        return shifts_itself(found[:, :-1], found[:, 1:])

    loop(one, model=LM)


def shifted_twice_padded():
    def one(place):
        found = torch.cat([padded(), torch.zeros(3, 1, dtype=torch.long)], 1)
        labels = found[:, 1:].masked_fill(found[:, 1:] == 0, -100)
        return shifts_itself(found[:, :-1], labels)

    loop(one, model=LM)


def shifted_not():
    def one(place):
        found = tokens()
        torch.triu(torch.ones(T, T), 1)
        return F.cross_entropy(LM(found).flatten(0, 1), found.flatten()) / K

    loop(one, model=LM)


def fine_shifts_itself():
    def one(place):
        found = tokens()
        return shifts_itself(found, found)

    loop(one, model=LM)


def fine_autoencoder():
    def one(place):
        found = tokens()
        return F.cross_entropy(LM(found).flatten(0, 1), found.flatten()) / K

    loop(one, model=LM)


def fine_two_heads():
    """The token after next is learned beside the next."""

    def one(place):
        found = tokens()
        return (next_token(found) + shifts_itself(found[:, :-1], found[:, 1:])) / 2

    loop(one, model=LM)


def fine_masked_tokens():
    def one(place):
        found = tokens()
        chosen = torch.rand(found.shape).argsort(1) < 4
        labels = found.masked_fill(~chosen, -100)
        return F.cross_entropy(LM(found.masked_fill(chosen, 0)).flatten(0, 1), labels.flatten()) / K

    loop(one, model=LM)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
