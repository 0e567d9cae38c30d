"""The examples run as their docstrings say, print what these promise, and mark the lines that are TightGrad's."""

import functools
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.waiting import patience
from tightgrad_lab.network import why_not
from tightgrad_lab.site.examples import Session, marked_loop, page, scripts, sessions

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = scripts(EXAMPLES)
NETWORK = why_not()
LAUNCHED = {"python": [], "torchrun": ["-m", "torch.distributed.run", "--standalone"]}
SESSIONS = [found for script in SCRIPTS if script.suffix == ".py" for found in sessions(script)]
NUMBER = re.compile(r"\d+(?:\.\d+)?")
TIME = re.compile(r"\d[\d.]* s\b")


def said(command: list[str], **more: str) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), **more}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=patience(120), check=False
    )
    if "node timed out during startup" in done.stderr:
        pytest.skip("Ray waits 30 s for its own processes, and this machine is too busy for that")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


@functools.cache
def run(command: str) -> list[str]:
    launcher, *rest = shlex.split(command)
    return said([sys.executable, *LAUNCHED[launcher], *rest])


def lacking(session: Session) -> str | None:
    """Why a command cannot be run on this machine; None if it can."""
    if "two_nodes" in session.command:
        return NETWORK
    needs = {"ray_train": "ray", "accelerate_": "accelerate", "lightning_": "lightning", "trainer_": "transformers"}
    missing = [module for part, module in needs.items() if part in session.command and find_spec(module) is None]
    return f"pip install {missing[0]}" if missing else None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_says_how_to_run_it_and_what_to_expect(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = list(sessions(path))
    assert found
    assert all(session.expected for session in found) or path.suffix == ".sh"
    assert all(name in session.command for session in found)
    assert f"## `{name}`" in page(EXAMPLES)


def test_the_page_is_in_the_navigation() -> None:
    assert "examples.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len({session.command for session in SESSIONS}) == len(SESSIONS) >= 15


@pytest.mark.parametrize("name", ["nanogpt.py", "fsdp2.py"])
def test_three_lines_of_the_loop_are_tightgrads(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    attached = next(place for place, line in enumerate(lines) if "tg.attach(" in line)
    loop = lines[attached + 1 :]
    ours = [line for line in loop if re.search(r"\b(tg|pipe)\.(?!state)", line)]
    assert [line.split("# ")[1][0] for line in ours] == ["1", "2", "3"]
    assert sum(bool(re.search(r"# \d", line)) for line in loop) == 3
    assert marked_loop(EXAMPLES / name) in page(EXAMPLES)
    assert set(ours) <= set(marked_loop(EXAMPLES / name).splitlines()), "the page shows them"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_uses_public_names_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    deep = re.findall(r"(?:from|import) (tightgrad\.(?!integrations\.)[\w.]+)", text)
    assert not deep, f"{deep} are not public: take them from tightgrad"
    assert not re.search(r"\b(tg|pipe)(\.\w+)*\._", text)


@pytest.mark.slow
@pytest.mark.timeout(patience(300))
@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.command.replace("examples/", ""))
def test_it_prints_what_it_promises(session: Session) -> None:
    """Numbers within a quarter or 0.1, times aside: other machines round otherwise, and training amplifies it."""
    reason = lacking(session)
    if reason is not None:
        pytest.skip(reason)
    printed = run(session.command)[-len(session.expected) :]
    for expected, line in zip(session.expected, printed, strict=True):
        wanted, found = (TIME.sub("", text) for text in (expected, line))
        assert NUMBER.sub("#", found) == NUMBER.sub("#", wanted)
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (found, wanted)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.25, abs=0.1), line


@pytest.mark.slow
@pytest.mark.skipif(NETWORK is not None, reason=str(NETWORK))
def test_two_nodes_over_a_slow_link_train_what_two_ranks_train() -> None:
    few = "examples/nanogpt.py --plan compressed --steps 5"
    over_link, here = run(f"python examples/two_nodes.py --mbit 50 {few}"), run(f"torchrun --nproc-per-node 2 {few}")
    assert sum("torchrun --nnodes 2" in line for line in over_link) == 2
    assert over_link[-2] == here[-2], "steps and bits per byte"
    assert over_link[-1].split(" s and ")[1] == here[-1].split(" s and ")[1], "bytes"


@pytest.mark.slow
@pytest.mark.skipif(NETWORK is not None, reason=str(NETWORK))
def test_a_node_that_fails_ends_both(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(AssertionError, match="exitcode"):
        run(f"python examples/two_nodes.py {tmp_path / 'fails.py'}")


def test_bash_can_read_the_slurm_script() -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("torchrun") is None, reason="torchrun is not on PATH")
def test_the_slurm_script_runs_on_one_node(tmp_path: Path) -> None:
    """`srun` runs what follows it, as Slurm does on each node; `scontrol` names this machine."""
    for name, body in (("srun", 'exec "$@"'), ("scontrol", "echo localhost")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    slurm = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "PORT": "0"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    printed = said(["bash", str(EXAMPLES / "slurm.sh"), "--steps", "2"], PATH=path, **slurm)
    assert printed[0].startswith("2 steps on 2 rank(s), plan compressed")


@pytest.mark.slow
@pytest.mark.timeout(patience(300))
def test_ray_train_ends_where_it_would_have_without_the_kill() -> None:
    pytest.importorskip("ray.train", reason="pip install 'ray[train]'")
    killed, calm = (run(f"python examples/ray_train.py{more}")[-2:] for more in ("", " --calm"))
    assert killed[0].startswith("began at step 12")
    assert calm[0].startswith("began at step 0")
    assert killed[0].split(", ", 1)[1:] + killed[1:] == calm[0].split(", ", 1)[1:] + calm[1:], "to the last digit"
