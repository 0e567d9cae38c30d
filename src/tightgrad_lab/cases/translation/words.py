"""Sentences to tokens and back.

A token carries the mark that joins it: an elided article keeps its apostrophe ("l'"), a pronoun behind a verb its
hyphen ("-vous"). So nothing is lost but the spaces before punctuation, which BLEU's own tokenizer does not see.
"""

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"\w+['’]|-\w+|\w+|[^\w\s]")


def source_tokens(sentence: str) -> list[str]:
    """Tokens in lower case."""
    return _TOKEN.findall(sentence.lower())


def target_tokens(sentence: str) -> list[str]:
    """Tokens; the first letter of the sentence in lower case."""
    return _TOKEN.findall(sentence[:1].lower() + sentence[1:])


def sentence_of(tokens: Sequence[str]) -> str:
    """A sentence, with a capital at its beginning."""
    text = ""
    for token in tokens:
        joined = not text or text.endswith(("'", "’")) or token in (".", ",") or (len(token) > 1 and token[0] == "-")
        text += token if joined else f" {token}"
    return text[:1].upper() + text[1:]
