"""Methods by id: those of this package. `test_entry_points.py` has those of others."""

import dataclasses

import pytest

import tightgrad as tg
from tightgrad.plan.registry import cards, check_ids, collect, method, methods


def test_ids_are_unique_and_lead_to_their_class():
    assert len({card.id for card in cards()}) == len(cards()) == len(methods())
    for name, cls in methods().items():
        assert cls.card.id == name
        assert method(name) is cls


def test_an_unknown_id_names_the_known_ones():
    with pytest.raises(tg.ConfigError, match=r"no method has the id 'topp'; known: .*topk"):
        method("topp")


def test_a_taken_id_raises_and_says_by_whom():
    other = type("Other", (), {"card": tg.codecs.TopK.card})
    with pytest.raises(tg.ConfigError, match="method id 'topk' of theirs is taken by ours; choose another id"):
        collect([("ours", tg.codecs.TopK), ("theirs", other)])


def test_a_class_without_a_card_raises():
    with pytest.raises(tg.ConfigError, match="int from somewhere has no `card`"):
        collect([("somewhere", int)])


@pytest.mark.parametrize("field", ["id", "summary", "scope", "reference", "use_when", "avoid_when"])
def test_a_card_is_complete(field):
    with pytest.raises(tg.ConfigError, match=f"has an empty {field}"):
        dataclasses.replace(tg.codecs.TopK.card, **{field: ""})


def test_a_card_has_a_kind():
    with pytest.raises(tg.ConfigError, match=r"kind='colour'.*'codec'"):
        dataclasses.replace(tg.codecs.TopK.card, kind="colour")


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.id)
def test_cards_are_one_liners_that_fit_a_table(card):
    for text in (card.summary, card.use_when, card.avoid_when, card.reference):
        assert "\n" not in text
        assert len(text) <= 160
    assert card.reducer == "" or card.kind == "codec"
    if card.reducer:
        assert method(card.reducer).card.kind == "reducer"


class Louder(tg.codecs.TopK):
    """A user's own, under the id that it inherits."""


class Softer(tg.clip.GlobalNorm):
    """The same of a clipper."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: tg.Plan(compress=tg.Compress(Louder(0.1), feedback=tg.ErrorFeedback())),
        lambda: tg.Plan(compress=tg.Compress(tg.codecs.PerTensor((("a.*", Louder(0.1)),), tg.codecs.IntBlock(8)))),
        lambda: tg.Plan(clip=Softer(1.0)),
        lambda: tg.Plan(clip=tg.clip.PerOptimizer((tg.clip.GlobalNorm(1.0), Softer(1.0)))),
    ],
)
def test_a_plan_takes_no_class_that_json_would_give_back_as_another(make):
    with pytest.raises(
        tg.ConfigError, match=r"carries the id '(topk|global_norm)' of tg.(codecs.TopK|clip.GlobalNorm)"
    ):
        make()


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("compress", tg.Compress),
        ("loss_scale", tg.LossScale),
        ("guard", tg.Guard),
        ("noise_scale", tg.scaling.NoiseScale),
    ],
)
def test_a_part_without_an_id_is_no_subclass_either(name, cls):
    assert getattr(tg.Plan(**{name: cls()}), name) == cls()
    with pytest.raises(tg.ConfigError, match=f"{name} is a Own, a subclass of tg.*{cls.__name__}, which a plan read"):
        tg.Plan(**{name: type("Own", (cls,), {})()})


def test_the_id_that_is_proposed_is_free():
    named_like_ours = type("ZClip", (tg.clip.ZClip,), {})
    with pytest.raises(tg.ConfigError, match=r"replace\(tg.clip.ZClip.card, id='my_zclip'\)"):
        tg.Plan(clip=named_like_ours())


def test_a_method_that_is_no_dataclass_is_looked_at_too():
    bare = type("Bare", (), {"card": tg.clip.GlobalNorm.card})()
    with pytest.raises(tg.ConfigError, match=r"Bare carries the id 'global_norm' of tg\.clip\.GlobalNorm"):
        check_ids(bare)


def test_a_subclass_with_a_card_of_its_own_is_taken():
    @dataclasses.dataclass(frozen=True)
    class Own(tg.clip.GlobalNorm):
        card = dataclasses.replace(tg.clip.GlobalNorm.card, id="own")

    assert tg.Plan(clip=Own(1.0)).to_config()["clip"]["id"] == "own"
