"""Plans: JSON there and back, and nothing that cannot run gets past the constructor."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tightgrad as tg
from conformance.cases import CLIPPERS, CODECS, FEEDBACKS, REDUCERS
from tightgrad.core.config import from_config, method_from_config, to_config
from tightgrad.plan.registry import method, methods

COMPRESSES = [
    tg.Compress(codec, reducer, feedback)
    for codec in (None, *CODECS)
    for reducer in (case.reducer for case in REDUCERS)
    if reducer.refuses(codec) is None
    for feedback in (
        None,
        *(f for f in (case.feedback for case in FEEDBACKS) if codec is not None and f.refuses(codec, reducer) is None),
    )
]
accumulates = st.one_of(
    st.none(),
    st.builds(tg.Accumulate, st.integers(1, 10**9), loss_reduction=st.sampled_from(["mean", "sum"])),
    st.builds(tg.Accumulate, st.none(), window_weight=st.floats(1e-3, 1e12)),
    st.just(tg.Accumulate(((0, 1), (100, 4)), losses=("main", "auxiliary"), partial="carry")),
)
plans = st.builds(
    tg.Plan,
    accumulate=accumulates,
    compress=st.sampled_from([None, *COMPRESSES]),
    clip=st.sampled_from([None, *(case.clipper for case in CLIPPERS)]),
    loss_scale=st.sampled_from([None, tg.LossScale()]),
    guard=st.one_of(st.none(), st.builds(tg.Guard, st.sampled_from(["raise", "skip"]), st.integers(1, 99))),
)


@given(plans)
def test_json_round_trip(plan):
    assert tg.Plan.from_json(plan.to_json()) == plan
    assert tg.Plan.from_json(plan.to_json(indent=2)).to_json() == plan.to_json()
    assert hash(tg.Plan.from_json(plan.to_json())) == hash(plan)


CANONICAL = [
    *CODECS,
    *(case.clipper for case in CLIPPERS),
    *(case.reducer for case in REDUCERS),
    *(case.feedback for case in FEEDBACKS),
    tg.Accumulate(4),
]


@pytest.mark.parametrize("value", CANONICAL, ids=repr)
def test_every_method_round_trips_and_refuses_unknown_settings(value):
    config = json.loads(json.dumps(to_config(value)))
    assert method_from_config(config, method, "part") == value
    with pytest.raises(tg.ConfigError, match="has no setting 'colour'"):
        method_from_config({**config, "colour": "red"}, method, "part")


def test_every_registered_method_is_covered():
    assert {value.card.id for value in CANONICAL} == set(methods())


def test_a_plan_is_frozen_and_its_guard_appears_only_with_something_to_guard():
    assert tg.Plan().is_empty
    assert tg.Plan().guard is None
    plan = tg.Plan(clip=tg.clip.Value(1.0))
    assert plan.guard == tg.Guard("raise")
    assert not tg.Plan(guard=tg.Guard()).is_empty
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.clip = None


def test_an_infinite_bound_round_trips():
    plan = tg.Plan(clip=tg.clip.GlobalNorm(math.inf))
    assert tg.Plan.from_json(plan.to_json()) == plan


BAD_JSON = [
    ("{", "must be JSON"),
    ("[]", "must be a JSON object, not list"),
    ("{}", "version None cannot be read; this is version 1"),
    ('{"version": 2}', "version 2 cannot be read"),
    ('{"version": 1, "clips": null}', "no setting 'clips'; its settings are: accumulate, compress, clip"),
    ('{"version": 1, "clip": {"id": "nonsense"}}', "no method has the id 'nonsense'; known: .*global_norm"),
    ('{"version": 1, "clip": {"max_norm": 1}}', 'clip=.*object with an "id"'),
    ('{"version": 1, "clip": {"id": 3}}', 'clip=.*object with an "id"'),
    ('{"version": 1, "clip": "value"}', 'clip=.*object with an "id"'),
    ('{"version": 1, "clip": {"id": "global_norm"}}', r"clip \(global_norm\) needs 'max_norm'"),
    ('{"version": 1, "clip": {"id": "global_norm", "max_norm": "1"}}', "max_norm='1' must be a number"),
    ('{"version": 1, "clip": {"id": "global_norm", "max_norm": null}}', "max_norm=None must be a number"),
    ('{"version": 1, "clip": {"id": "global_norm", "max_norm": true}}', "max_norm=True must be a number"),
    ('{"version": 1, "clip": {"id": "global_norm", "max_norm": NaN}}', "max_norm=nan must be a number"),
    ('{"version": 1, "clip": {"id": "topk", "density": 0.1}}', "clip=TopK.* must be a Clipper"),
    ('{"version": 1, "accumulate": {"id": "value", "max_value": 1}}', "accumulate=Value.* must be an Accumulate"),
    ('{"version": 1, "accumulate": {"id": "accumulate", "micro_batches": [1, 2]}}', "schedule .* must be a tuple"),
    ('{"version": 1, "accumulate": {"id": "accumulate", "losses": "loss"}}', "losses='loss' must be a tuple"),
    ('{"version": 1, "compress": 3}', "compress=3 must be an object"),
    ('{"version": 1, "compress": {"codec": {"id": "int_block", "bits": 8.0}}}', "bits=8.0"),
    ('{"version": 1, "compress": {"codec": {"id": "topk", "density": 2}}}', "density=2"),
    ('{"version": 1, "compress": {"codec": {"id": "topk", "density": 1, "values": {"id": "dense"}}}}', "values=Dense"),
    ('{"version": 1, "compress": {"codec": "topk"}}', "codec='topk' must be a Codec"),
    ('{"version": 1, "compress": {"speed": 1}}', "compress has no setting 'speed'"),
    ('{"version": 1, "guard": {"on_nonfinite": "pray"}}', "on_nonfinite='pray'"),
    ('{"version": 1, "guard": []}', "guard=.* must be an object"),
]


@pytest.mark.parametrize(("text", "words"), BAD_JSON)
def test_bad_json_is_a_config_error_that_says_where(text, words):
    with pytest.raises(tg.ConfigError, match=words):
        tg.Plan.from_json(text)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(data=st.data(), value=json_values)
def test_any_value_anywhere_is_read_or_is_a_config_error(data, value):
    """Replace one node of a good plan by anything that JSON can say."""
    plan = tg.Plan(
        accumulate=tg.Accumulate(2),
        compress=tg.Compress(tg.codecs.TopK(0.1, values=tg.codecs.IntBlock()), feedback=tg.ErrorFeedback()),
        clip=tg.clip.GlobalNorm(1.0),
    )
    config = json.loads(plan.to_json())
    node = config
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not isinstance(node[key], dict) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = value
    try:
        read = tg.Plan.from_json(json.dumps(config))
    except tg.ConfigError:
        return
    assert tg.Plan.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tg.Compress(tg.codecs.TopK(0.1), tg.reducers.TwoShot()), "needs scope tensor; use gather"),
        (lambda: tg.Compress(None, tg.reducers.Gather()), "name one, or use dense"),
        (lambda: tg.Compress(None, tg.reducers.TwoShot()), "name one, or use dense"),
        (lambda: tg.Compress(tg.codecs.Cast(), tg.reducers.Dense()), "use two_shot or gather"),
        (lambda: tg.Compress(feedback=tg.ErrorFeedback()), "feedback has no use; drop one"),
        (lambda: tg.Plan(tg.Accumulate(2, sync="every"), tg.Compress(tg.codecs.Cast())), "leave sync alone"),
    ],
)
def test_parts_that_cannot_run_together_are_refused_with_the_fix(make, words):
    with pytest.raises(tg.IncompatiblePlanError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tg.Plan(clip=tg.clip.Value), r"must be a Clipper or None; write Value\(\.\.\.\)"),
        (lambda: tg.Plan(clip=1.0), "clip=1.0 must be a Clipper"),
        (lambda: tg.Plan(compress=tg.codecs.Cast()), "compress=Cast.* must be a Compress"),
        (lambda: tg.Plan(accumulate=4), "accumulate=4 must be an Accumulate"),
        (lambda: tg.Compress(tg.reducers.Gather()), "codec=Gather.* must be a Codec"),
        (lambda: tg.Compress(tg.codecs.Cast(), feedback=True), "feedback=True must be a Feedback"),
    ],
)
def test_parts_of_the_wrong_kind(make, words):
    with pytest.raises(tg.ConfigError, match=words):
        make()


def test_a_codec_without_a_default_reducer_asks_for_one():
    card = dataclasses.replace(tg.codecs.Cast.card, id="lonely", reducer="")
    lonely = type("Lonely", (tg.codecs.Cast,), {"card": card})
    with pytest.raises(tg.ConfigError, match="card of lonely names no reducer"):
        tg.Compress(lonely())
    assert tg.Compress(lonely(), tg.reducers.Gather()).codec == lonely()


def test_config_errors_say_where():
    with pytest.raises(tg.ConfigError, match="guard=3 must be an object"):
        from_config(tg.Guard, 3, method, "guard")


def test_what_cannot_overlap_with_backward_is_refused_when_the_plan_is_built():
    compress = tg.Compress(tg.codecs.TopK(0.1), overlap="backward")
    with pytest.raises(tg.IncompatiblePlanError, match=r"local_clip needs the norm of the whole local gradient"):
        tg.Plan(compress=compress, local_clip=1.0)
    with pytest.raises(tg.IncompatiblePlanError, match=r'on_oom="split" runs a window again'):
        tg.Plan(compress=compress, accumulate=tg.Accumulate(2, on_oom="split"))
    with pytest.raises(tg.ConfigError, match="overlap='always'"):
        tg.Compress(overlap="always")
    model = torch.nn.Linear(2, 2)
    with pytest.raises(tg.UnsupportedError, match=r'overlap="backward" needs DistributedDataParallel'):
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(compress=compress))
