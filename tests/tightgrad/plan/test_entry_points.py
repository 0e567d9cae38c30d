"""Methods of other packages: loaded at the first look-up, and a broken one harms nobody else."""

import json
import textwrap
from pathlib import Path
from subprocess import CompletedProcess

from support import plugin

USE = """
    import tightgrad as tg
    from tightgrad.plan.registry import method
    plan = tg.Plan.from_json('{"version": 1, "compress": {"codec": {"id": "third"}}}')
    assert type(plan.compress.codec) is method("third")
    assert tg.Plan.from_json(plan.to_json()) == plan
    print(plan.compress.codec.card.summary)
"""


def works(done: CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_package_adds_a_method(tmp_path: Path) -> None:
    plugin.install(tmp_path, "third", plugin.codec("third"))
    assert works(plugin.run_forked(tmp_path, USE)) == "from another package\n"


def test_the_package_may_be_imported_first(tmp_path: Path) -> None:
    """It imports tightgrad, which must not ask for the class that is not defined yet."""
    plugin.install(tmp_path, "third", plugin.codec("third"))
    assert works(plugin.run(tmp_path, "import third\n" + textwrap.dedent(USE))) == "from another package\n"


def test_a_package_may_look_methods_up_while_it_is_imported(tmp_path: Path) -> None:
    """Its own are not there yet; they are afterwards. Two names for one class are no conflict."""
    before = """
        import warnings
        from tightgrad.plan.registry import methods
        with warnings.catch_warnings(record=True):
            assert "topk" in methods()
    """
    after = 'PLAN = tg.Plan(compress=tg.Compress(Third("bfloat16")))\n'
    source = textwrap.dedent(before) + plugin.codec("third") + after
    plugin.install(tmp_path, "third", source, "third = third:Third\nalias = third:Third")
    assert (
        works(plugin.run_forked(tmp_path, "from third import Third\n" + textwrap.dedent(USE)))
        == "from another package\n"
    )


def test_no_entry_point_is_loaded_where_none_is_needed(tmp_path: Path) -> None:
    plugin.install(tmp_path, "third", "raise SystemExit('imported')")
    code = """
        import sys
        import tightgrad as tg
        assert "third" not in sys.modules
        from tightgrad.plan.registry import method
        plan = tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.1), feedback=tg.ErrorFeedback()), clip=tg.clip.AGC())
        assert tg.Plan.from_json(plan.to_json()) == plan
        assert method("topk") is tg.codecs.TopK
        import tightgrad.integrations
        assert "third" not in sys.modules
        print("ok")
    """
    assert works(plugin.run(tmp_path, code)) == "ok\n"


CARD = """
from dataclasses import dataclass, replace
import tightgrad as tg
from tightgrad.core.protocols import Codec
card = replace(tg.codecs.Cast.card, id="third")
"""
# Source of a module, entry point (None is the class `Third` of the module), and what the message says.
BROKEN: dict[str, tuple[str, str | None, str]] = {
    "absent": ("import a_module_that_is_not_there", None, "ModuleNotFoundError: No module named 'a_module_that"),
    "syntax": ("def def", None, "SyntaxError: "),
    "raises": ("raise OSError('no licence found.')", None, "OSError: no licence found. Mend or uninstall raises."),
    "exits": ("raise SystemExit('usage: third')", None, "SystemExit: usage: third."),
    "nothing": ("x = 1", None, "AttributeError: module 'nothing' has no attribute 'Third'."),
    "number": ("Third = 3", None, "number:Third is 3 and no class; write the value as module:Class."),
    "module": ("x = 1", "module = module", "and no class; write the value as module:Class."),
    "malformed": (plugin.codec("third"), "malformed = malformed Third", "AttributeError: "),
    "cardless": ("class Third: pass", None, "Third has no `card`; give it a MethodCard."),
    "baseless": (
        CARD + "class Third:\n    card = card",
        None,
        "of kind 'codec' and does not derive from Codec; derive",
    ),
    "abstract": (
        CARD + "@dataclass(frozen=True)\nclass Third(Codec):\n    card = card",
        None,
        "Third does not define decode, encode, layout; define it.",
    ),
    "taken": (plugin.codec("cast"), None, "method id 'cast' of taken:Third (entry point taken) is taken by tightgrad."),
    "first": (plugin.codec("twice"), None, "of first:Third (entry point first) is claimed by second:Third"),
    "second": (plugin.codec("twice"), None, "of second:Third (entry point second) is claimed by first:Third"),
    "not_yet": (
        "import os\nif 'READY' not in os.environ: raise ImportError('not ready')\n" + plugin.codec("not_yet"),
        None,
        "ImportError: not ready.",
    ),
}
AMONG_BROKEN = """
    import json, os, warnings
    import tightgrad as tg
    from tightgrad.plan.registry import cards, method
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert method("topk") is tg.codecs.TopK
        assert method("cast") is tg.codecs.Cast
        plan = tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.1), feedback=tg.ErrorFeedback()))
        assert tg.Plan.from_json(plan.to_json()) == plan
        assert method("good").card.summary == "from another package"  # other packages' as well
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = [card.id for card in cards()]
    assert {"topk", "cast", "good"} <= set(ids) and len(ids) == len(set(ids))
    assert not {"third", "twice"} & set(ids)
    assert all(one.category is tg.TightGradWarning for one in caught)
    errors = {}
    for name in ("third", "twice"):
        try:
            tg.Plan.from_config({"version": 1, "compress": {"codec": {"id": name}}})
        except tg.ConfigError as error:
            errors[name] = str(error)
            assert error.__cause__ is not None
    os.environ["READY"] = "1"
    assert method("not_yet").card.id == "not_yet"  # mended while the process runs
    print(json.dumps([[str(one.message) for one in caught], errors]))
"""


def test_broken_ones_are_named_and_harm_nobody_else(tmp_path: Path) -> None:
    for name, (source, points, _) in BROKEN.items():
        plugin.install(tmp_path, name, source, points)
    plugin.install(tmp_path, "good", plugin.codec("good"))
    warned, errors = json.loads(works(plugin.run_forked(tmp_path, AMONG_BROKEN)))
    assert len(warned) == len(BROKEN)
    assert set(errors) == {"third", "twice"}
    for name, (_, _, reason) in BROKEN.items():
        where = f"The entry point {name!r} of the distribution {name} 1.0 cannot be used: "
        (message,) = [message for message in warned if where in message]
        assert reason in message
        for text in errors.values():
            assert where in text
            assert reason in text


def test_the_command_line_lists_ours_beside_a_broken_one(tmp_path: Path) -> None:
    plugin.install(tmp_path, "third", "import a_module_that_is_not_there")
    code = """
        import sys
        from tightgrad_lab.cli import main
        sys.argv = ["tightgrad", "methods"]
        main()
    """
    done = plugin.run_forked(tmp_path, code)
    assert "topk" in works(done)
    assert "The entry point 'third' of the distribution third 1.0 cannot be used" in done.stderr
