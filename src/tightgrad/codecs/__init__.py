"""Codecs: one file per method. A line here registers the method under its card's id."""

from tightgrad.codecs.cast import Cast as Cast
from tightgrad.codecs.int_block import IntBlock as IntBlock
from tightgrad.codecs.topk import TopK as TopK
