"""Which hashed rows pruning left, and where they lie now: a bit a row and a count a word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WORD = 64
"""Rows a word."""
WORD_BYTES = 12
"""Bytes of a word and of its count: 1.5 bits a row, where a number a row would take 32."""

_PAIRS = 0x5555555555555555
_NIBBLES = 0x3333333333333333
_BYTES = 0x0F0F0F0F0F0F0F0F
_ONES = 0x0101010101010101


class KeptRows(nn.Module):
    """Leads from the rows that ids hash to (before pruning) to those that are left of them.

    The rank of a bit in a bitmap (Jacobson 1989), with integer torch operations only.  The rows that are left keep
    their order; all others are read as the row after the last of them, which is one of zeros.

    Args:
        rows: that ids hash to.
        left: how many of them are left.

    >>> kept = KeptRows(5, 2)
    >>> kept.fill(torch.tensor([False, True, False, False, True]))
    >>> kept(torch.arange(5)).tolist()
    [2, 0, 2, 2, 1]
    """

    words: Tensor
    """[ceil(rows / 64)] int64: bit i of word w tells whether row `64 w + i` is left."""
    before: Tensor
    """[ceil(rows / 64)] int32: how many rows are left before those of the word."""

    def __init__(self, rows: int, left: int) -> None:
        super().__init__()
        self.rows, self.left = rows, left
        self.register_buffer("words", torch.zeros(words_of(rows), dtype=torch.int64))
        self.register_buffer("before", torch.zeros(words_of(rows), dtype=torch.int32))

    def fill(self, kept: Tensor) -> None:
        """Says which rows are left: [rows] bool, `left` of them true."""
        bits = torch.zeros(len(self.words) * WORD, dtype=torch.int64)
        bits[: self.rows] = kept
        self.words.copy_((bits.view(-1, WORD) << torch.arange(WORD)).sum(1))
        counts = bits.view(-1, WORD).sum(1)
        self.before.copy_(counts.cumsum(0) - counts)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows int64 of any shape, before pruning -> rows int64 of the same shape, after it."""
        at, bit = rows >> 6, rows & 63
        word = self.words[at]
        place = self.before[at] + popcount(word & ((1 << bit) - 1))
        return torch.where((word >> bit) & 1 == 1, place, self.left)


def words_of(rows: int) -> int:
    """Words for so many rows."""
    return -(-rows // WORD)


def popcount(x: Tensor) -> Tensor:
    """The number of bits that are set, element by element; int64 -> int64.

    >>> popcount(torch.tensor([0, 5, -1, 1 << 63 - 1])).tolist()
    [0, 2, 64, 1]
    """
    x = x - ((x >> 1) & _PAIRS)
    x = (x & _NIBBLES) + ((x >> 2) & _NIBBLES)
    x = (x + (x >> 4)) & _BYTES
    return ((x * _ONES) >> 56) & 0xFF
