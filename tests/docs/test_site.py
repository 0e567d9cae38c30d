"""The generated pages of the site leave nothing out: public names, messages, rows of the field tests."""

import ast
import functools
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

import tightgrad as tg
from tightgrad_lab.site import field, messages, reference

ROOT = Path(__file__).parents[2]
CODE = ROOT / "src" / "tightgrad"
RESULTS = ROOT / "benchmarks" / "results"
NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
LINES = r"https://github\.com/[\w.-]+/[\w.-]+/blob/[0-9a-f]{40}/[\w./-]+#L\d+(-L\d+)?"
"""Lines of a file at a commit."""


@functools.cache
def pages():
    """Give the reference's pages, for which every public module is read; no test module that is collected should."""
    return reference.pages()


@functools.cache
def troubleshooting():
    """Give the page of all messages, for which every file of the library is read."""
    return messages.page()


@pytest.mark.parametrize("module", reference.public_modules())
def test_every_public_name_has_its_place_in_the_reference(module):
    names = reference.public_names(module)
    assert names
    listed = listed_in(module)
    called = {f"{module}.{name}.{member}" for name in names for member in members(name)}
    assert [name for name in listed if name not in called] == [f"{module}.{name}" for name in names]
    for name in names:
        assert f"[`{name}`](" in pages()["reference/index.md"]


def listed_in(module):
    return re.findall(r"^::: (\S+)$", pages()[reference.file_of(module)], re.MULTILINE)


def members(name):
    return " ".join(reference.CALLED.get(name, {}).values()).split()


@pytest.mark.parametrize("module", reference.public_modules())
def test_the_reference_has_no_internals(module):
    """No private name, no module that users do not import, and of a class only what they call."""
    names = reference.public_names(module)
    for path in listed_in(module):
        assert not any(part.startswith("_") for part in path.split(".")), path
        name, _, member = path.removeprefix(f"{module}.").partition(".")
        assert name in names, path
        assert not member or member in members(name), path
    options = yaml.safe_load(NAV[NAV.index("plugins:") : NAV.index("markdown_extensions:")])["plugins"][1]
    shown = options["mkdocstrings"]["handlers"]["python"]["options"]
    assert shown["members"] == []  # whatever is not listed stays out
    assert shown["show_bases"] is False  # which live in modules that users do not import


def test_what_users_call_of_a_class_is_there_and_says_what_it_does():
    homes = {name: module for module in reference.public_modules() for name in reference.public_names(module)}
    assert reference.CALLED.keys() <= homes.keys()
    for name in reference.CALLED:
        found = getattr(importlib.import_module(homes[name]), name)
        for member in members(name):
            assert inspect.getdoc(getattr(found, member)), f"{name}.{member}"


def test_the_reference_of_the_pipeline_has_every_call_of_the_guides_and_examples():
    paths = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py"), ROOT / "README.md"]
    called = {name for path in paths for name in re.findall(r"\bpipe\.([a-z]\w*)\(", path.read_text(encoding="utf-8"))}
    assert called >= {"windows", "backward", "step", "skip", "run"}
    assert called <= {*members("GradientPipeline")}


CORE_IMPORT = r"^ *(?:>>> )?from (tightgrad\.core\.\w+) import (.+)$"


def test_what_the_guides_and_examples_import_of_core_is_in_the_reference():
    """A package's author looks up what the class is made of, under the name that is imported."""
    guides = [*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "tests/support/own_methods/half.py"]
    methods = [
        path
        for kind in ("clip", "codecs", "reducers", "feedback")
        for path in (ROOT / "src/tightgrad" / kind).glob("*.py")
    ]
    examples = [line for path in methods for line in path.read_text(encoding="utf-8").splitlines() if ">>> " in line]
    texts = [*(path.read_text(encoding="utf-8") for path in guides), *examples]
    found = [match for text in texts for match in re.findall(CORE_IMPORT, text, re.MULTILINE)]
    imported = {f"{module}.{name.strip()}" for module, names in found for name in names.split(",")}
    assert len(imported) > 15
    index = pages()["reference/index.md"]
    missing = {name for name in imported if f"](core.md#{name})" not in index}
    assert missing <= {"tightgrad.core.card.MethodCard"}  # the card is a name of the package itself
    assert "(tightgrad.md#tightgrad.MethodCard)" in index
    shown = re.findall(r"^::: (\S+)$", pages()["reference/core.md"], re.MULTILINE)
    for path in shown:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_a_link_with_the_name_of_something_public_leads_to_its_place():
    homes = {name: module for module in reversed(reference.public_modules()) for name in reference.public_names(module)}
    linked = r"\[`(?:tg\.|tightgrad\.)?(?:\w+\.)?(\w+)`\]\((?:\.\./)*reference/([^)]+)\)"
    pages = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}
    links = [
        (path.name, *match) for path, text in pages.items() for match in re.findall(linked, text) if match[0] in homes
    ]
    assert len(links) > 2
    for page, name, target in links:
        file = reference.file_of(homes[name]).removeprefix("reference/")
        assert target == f"{file}#{homes[name]}.{name}", page


def test_all_names_of_the_package_itself_are_there():
    modules = {"clip", "codecs", "collectives", "dcp", "feedback", "records", "reducers", "scaling"}
    assert {*reference.public_names("tightgrad")} == {*tg.__all__} - modules - {"__version__"}
    assert {f"tightgrad.{name}" for name in modules} <= {*reference.public_modules()}


def test_every_integration_is_there():
    named = {
        found
        for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
        for found in re.findall(r"tightgrad\.integrations\.([a-z_]+)", path.read_text(encoding="utf-8"))
    }
    assert named == {*reference.integrations()}


def raises():
    """All places that raise one of our errors, by file, line and what is raised."""
    kinds = messages.kinds()
    for path in sorted(messages.ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                if name in kinds:
                    yield path.relative_to(messages.ROOT.parent).as_posix(), node.exc.lineno, ast.unparse(node.exc)


FORWARDED = (
    "CheckpointError(reason or",  # torch's own words
    "IncompatiblePlanError(f'{reason}.')",  # the texts of the methods' `refuses`, which are listed
    "UsageError(grew_late(late) if late",  # listed where one rank says it
    "ConfigError(f\"{where} needs {', '.join",
)


def test_every_error_of_the_code_is_on_the_page():
    listed = {(message.file, message.line) for message in messages.messages()}
    missing = [where for where in raises() if where[:2] not in listed and not where[2].startswith(FORWARDED)]
    assert missing == []
    assert len(listed) > 300


def test_messages_stand_in_the_same_order_every_time():
    """Of those of one line too, such as two ways to say what is wrong."""
    found = messages.messages()
    assert len({(message.file, message.line) for message in found}) < len(found)
    kinds = messages.kinds()
    assert [*found] == sorted(found, key=lambda one: (kinds.index(one.kind), one.file, one.line, one.text))


def test_the_page_has_what_a_user_would_search_for():
    page = troubleshooting()
    for kind in messages.kinds():
        assert f"## {kind}" in page
    for words in ("step() came after", "does not accumulate", "holds none of the model's", "leaves nothing behind"):
        assert words in page.replace("\\", ""), words


def test_the_first_sentence_of_a_message_is_a_heading_which_a_search_looks_at_first():
    headings = re.findall(r"^### (.+)$", troubleshooting(), re.MULTILINE)
    assert len(headings) == len(messages.messages())
    plain = {heading.replace("\\", "") for heading in headings}
    assert "a plan of version {version} cannot be read; this is version {PLAN_VERSION}." in plain


@pytest.mark.parametrize("name", ["attach", "GlobalNorm", "clip_grad_norm_", "state_dict"])
def test_the_search_takes_a_name_apart_as_users_type_it(name):
    separator = re.search(r"separator: '(.+)'", NAV)[1]
    for typed in (name, f"tightgrad.{name}", f"tg.clip.{name}(", f'"{name}"'):
        assert name in re.split(separator, typed)


def test_the_addresses_of_the_project_stand_in_one_file():
    owner = "github.com/tightgrad"
    places = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "mkdocs.yml", *(ROOT / "docs").rglob("*.md")]
    assert [path for path in places if owner in path.read_text(encoding="utf-8")] == []
    assert owner in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_what_is_quoted_of_other_libraries_names_its_source():
    page = field.page(RESULTS)
    for name in ("DeepSpeed", "torchft", "hivemind", "Horovod"):
        assert re.search(rf"^\| {name} \| \[.+\]\({LINES}\) \|", page, re.MULTILINE)


def test_every_cell_of_a_peer_was_run_or_names_the_lines_that_were_read():
    """At a commit, on a date, for the eight libraries that people compare with."""
    read = json.loads(field.latest(RESULTS, "peers").read_text(encoding="utf-8"))
    page = field.page(RESULTS)
    assert f"The cells were read on {read['read']}" in page
    table = page.partition("## Between backward and step")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| [")]
    names = [re.match(r"\| \[([A-Za-z]+)", row[0])[1] for row in rows]
    assert names == ["PyTorch", "Accelerate", "Lightning", "DeepSpeed", "torchft", "torchcomms", "torchtitan", "optax"]
    for row in rows:
        assert len(row) == 1 + len(read["columns"])
        for cell in row[1:]:
            test = re.search(r" \(run\): .+; `(test_\w+\.py)`", cell)
            assert (ROOT / "tests" / "field" / test[1]).is_file() if test else re.search(LINES, cell), cell


def test_rows_beside_other_libraries_are_those_of_the_stored_run():
    page = field.page(RESULTS).replace("\\", "")
    rows = json.loads(field.latest(RESULTS).read_text(encoding="utf-8"))["rows"]
    assert len(rows) > 35
    for row in rows:
        assert f"| {row['case']} | {row['peer']} | {row['peer_result']} | {row['tightgrad_result']} |" in page


def test_the_navigation_has_every_page_but_those_of_single_methods():
    nav = yaml.safe_load(NAV[NAV.index("nav:") :])["nav"]
    listed = set(_leaves(nav))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    expected = {name for name in written if not name.startswith("decisions/")} | pages().keys()
    assert expected <= listed


def _leaves(node):
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _leaves(value)
    else:
        for value in node:
            yield from _leaves(value)
