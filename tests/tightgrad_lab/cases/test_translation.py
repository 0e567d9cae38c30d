"""Decoding finds what it should, BLEU is sacrebleu's, the dictionary learns words, the split keeps sentences apart."""

import torch
from sacrebleu.metrics.bleu import BLEU

from tightgrad_lab.cases.translation import data
from tightgrad_lab.cases.translation.bleu import bleu, statistics
from tightgrad_lab.cases.translation.decoding import beam, greedy
from tightgrad_lab.cases.translation.dictionary import dictionary, word_by_word
from tightgrad_lab.cases.translation.model import Transformer
from tightgrad_lab.cases.translation.words import sentence_of, source_tokens, target_tokens
from tightgrad_lab.training.vocabulary import BEGIN, END, PAD

LONGEST = 6


def _model():
    torch.manual_seed(0)
    model = Transformer(12, 9, LONGEST, width=16, heads=2, layers=2, dropout=0.0).eval()
    with torch.no_grad():
        model.target.weight.mul_(3)  # confident, so that sentences differ
    return model


SOURCE = torch.tensor([[4, 5, 6, END], [7, END, PAD, PAD], [8, 9, END, PAD]])


def _score(model, source, ids):
    """Mean log-probability of a sentence, from one pass without a state."""
    target = torch.tensor([[BEGIN, *ids]])
    scores = model(source, target[:, :-1])
    scores[..., (PAD, BEGIN, 1)] = -torch.inf
    return float(scores.log_softmax(-1)[0].gather(1, target[0, 1:, None]).mean())


@torch.no_grad()
def test_scores_are_those_of_the_whole_model():
    model = _model()
    for decoded in (greedy(model, SOURCE, LONGEST), beam(model, SOURCE, LONGEST, 3)):
        for row, ids in enumerate(decoded.ids):
            own = SOURCE[row : row + 1, : int((SOURCE[row] != PAD).sum())]
            assert abs(_score(model, own, ids) - decoded.scores[row]) < 1e-5


@torch.no_grad()
def test_a_wide_beam_finds_the_best_short_sentence():
    model, length = _model(), 2
    words = [END, *range(4, 9)]
    sentences = [[END], *([a, b] for a in words[1:] for b in words)]
    for row in range(len(SOURCE)):
        own = SOURCE[row : row + 1, : int((SOURCE[row] != PAD).sum())]
        best = max(_score(model, own, ids) for ids in sentences)
        found = beam(model, own, length, 30)
        assert abs(found.scores[0] - best) < 1e-5
        assert found.scores[0] >= greedy(model, own, length).scores[0] - 1e-6


def test_bleu_adds_up_over_parts():
    translations = ["the cat sat on the mat", "a dog ran away quickly", "no"]
    references = ["the cat sat on a mat", "the dog ran away quickly", "no no"]
    whole = statistics(translations[:2], references[:2]) + statistics(translations[2:], references[2:])
    assert abs(bleu(whole) - BLEU().corpus_score(translations, [references]).score) < 1e-9


def test_the_dictionary_learns_words_and_their_order_stays():
    raw = [("red house", "maison rouge"), ("red cat", "chat rouge"), ("big cat", "chat grand"), ("big", "grand")] * 3
    train, test = data.encoded(raw, [("red cat big house", "")])
    best = dictionary(train)
    assert test.target_words.decode(word_by_word(best, test.sources[0])) == ["rouge", "chat", "grand", "maison"]


def test_sentences_survive_their_tokens():
    for text in ("J'ai dit : « Viens-tu ? »", "L'homme est là.", "Donne-moi l'eau, s'il te plaît !"):
        again = sentence_of(target_tokens(text))
        assert "".join(again.split()) == "".join(text.split())
    assert source_tokens("Don't GO.") == source_tokens("don't go.")


def test_no_test_sentence_is_trained_on(tmp_path, monkeypatch):
    lines = [f"English {n // 2}.\tFrançais {n}.\tby someone" for n in range(200)]
    (tmp_path / "en-fr.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(data, "need", lambda name: tmp_path)
    monkeypatch.setattr(data, "TEST_SENTENCES", 10)
    data.tatoeba_whole.cache_clear()
    train, test = data.tatoeba_whole()
    data.tatoeba_whole.cache_clear()
    assert (len(train), len(test)) == (180, 10)
    assert not {source for source, _ in train} & {source for source, _ in test}
