"""The experiment runs where there are namespaces, and says what is missing elsewhere."""

import json
from dataclasses import replace

import pytest

from tightgrad_lab.bench.link_work import Work
from tightgrad_lab.common.recommended import RECOMMENDED
from tightgrad_lab.experiments.link_speeds import EXPERIMENT
from tightgrad_lab.network import why_not
from tightgrad_lab.schema import PAYS

REASON = why_not()


@pytest.mark.slow
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_short_run() -> None:
    settings = replace(
        EXPERIMENT.settings(full=False), rates=(10_000_000,), plans=("topk 0.1 %",), steps=1, work=Work(96, 2, 2)
    )
    told: list[str] = []
    found = EXPERIMENT.run(settings, lambda share, text: told.append(text))
    slow, fast = found.table
    assert slow["is_limited"]
    assert not fast["is_limited"]
    assert fast["bits_per_second"] > 0
    for row in found.table:  # whether it pays depends on what else the machine does
        assert row["best"] == "topk 0.1 %"
        assert row["pays"] == (row["best_seconds"] <= PAYS * row["dense_seconds"])
    assert any("dense" in line for line in told)
    assert json.loads(json.dumps(found.figure))["num_parameters"] == settings.work.num_parameters


def test_full_settings_have_every_plan_and_both_numbers_of_ranks() -> None:
    settings = EXPERIMENT.settings(full=True)
    assert settings.ranks == (2, 4)
    assert settings.plans == tuple(RECOMMENDED)
    assert len(settings.plans) == 8


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert "need root" in str(EXPERIMENT.missing())
