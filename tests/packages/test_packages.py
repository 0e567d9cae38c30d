"""What the extra `lab` refers to, what a release refuses, and which files belong to which distribution."""

import importlib.util
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"packages_{name}", ROOT / "packages" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backend, release = loaded("backend"), loaded("release")


@pytest.fixture
def tree(tmp_path):
    """A committed checkout of version 1.2.3, as far as backend and release look at it."""
    (tmp_path / "src" / "tightgrad").mkdir(parents=True)
    (tmp_path / "packages" / "lab").mkdir(parents=True)
    (tmp_path / "src" / "tightgrad" / "version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 - 2026-11-30\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def test_a_checkout_builds_the_lab_and_an_editable_install_has_it(tree):
    assert backend.lab(tree) == f"@ {(tree / 'packages' / 'lab').as_uri()}"
    assert backend.lab(tree, editable=True) == '; python_version < "3"'


def test_a_release_and_a_source_archive_name_the_same_version(tree, monkeypatch):
    monkeypatch.setenv("TIGHTGRAD_RELEASE", "1")
    assert backend.lab(tree) == "==1.2.3"
    monkeypatch.delenv("TIGHTGRAD_RELEASE")
    (tree / "packages" / "lab").rmdir()
    assert backend.lab(tree) == "==1.2.3"


def test_a_finished_tree_is_released(tree):
    assert release.refuse_unfinished(tree) is None


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("src/tightgrad/version.py", '__version__ = "1.2.3.dev0"', "one of development"),
        ("src/tightgrad/version.py", '__version__ = "1.2.4"', "no section '## 1.2.4 - "),
        ("CHANGELOG.md", "## Unreleased\n", "no section '## 1.2.3 - "),
        ("CHANGELOG.md", "## 1.2.3 - 2026-11-30\n\nmore\n", "uncommitted"),
        ("new.txt", "", "uncommitted"),
    ],
)
def test_an_unfinished_tree_is_not(tree, file, text, said):
    (tree / file).write_text(text)
    with pytest.raises(SystemExit, match=said):
        release.refuse_unfinished(tree)


def test_the_library_is_without_the_lab_and_the_lab_is_whole():
    library = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lab = tomllib.loads((ROOT / "packages" / "lab" / "pyproject.toml").read_text())
    packages = library["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    forced = lab["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert sorted([*packages, *(name.removeprefix("../../") for name in forced if "/src/" in name)]) == sorted(
        f"src/{path.name}" for path in (ROOT / "src").iterdir() if (path / "__init__.py").exists()
    )
    size = sum(path.stat().st_size for name in packages for path in (ROOT / name).rglob("*.*") if path.suffix != ".pyc")
    assert size < 3_000_000  # text, which a wheel packs to a quarter and less; `make release-check` holds the wheel


def test_a_tree_of_this_version_has_its_changelog():
    assert f"## {release.version()} - " in (ROOT / "CHANGELOG.md").read_text()
    assert "pipe.step()" in release.first_example()
