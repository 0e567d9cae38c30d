"""What the codecs share: packing, entropy coding, selection, sparse messages, blocks."""
