"""Scripts are run as they are: planted bugs are named, unusual loops that are right are not accused."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.waiting import patience
from tightgrad_lab.audit.script import ScriptAudit, Settings, audit_script
from tightgrad_lab.cli import app as cli

HERE = Path(__file__).parent
CORPUS = Path(__file__).parents[4] / "examples" / "audit"
BUGS = {
    "accelerate_clip": "clip in mid-window",
    "accelerate_partial": "short window",
    "all_masked": "all masked",
    "bare_model": "no sync",
    "clip_after_step": "clip after step",
    "clip_before_unscale": "clip before unscale",
    "clip_each_group": "clipped in groups",
    "clip_each_parameter": "clipped in groups",
    "clip_each_rank": "clip each rank",
    "clip_in_mid_window": "clip in mid-window",
    "clip_part": "clipped in groups",
    "divided_by_all_ranks": "mass",
    "divided_twice": "mass",
    "epoch_leak": "leak",
    "last_synced": "no sync",
    "lightning_partial": "short window",
    "mean_of_means": "mean of micro-batch means",
    "never_averaged": "mass",
    "never_unscaled": "scaled",
    "no_sync": "no sync",
    "not_divided": "mass",
    "off_by_one": "off by one",
    "partial_window": "short window",
    "rank_means": "mean of rank means",
    "sum_of_losses": "sum",
    "trainer_num_items": "mean of micro-batch means",
    "unscaled_twice": "unscaled twice",
    "world_size": "mass",
    "zero_grad_inside": "cleared",
    "zero_grad_missing": "not cleared",
}
"""Bugs of examples/audit that a run of the script shows, and the kind that must be named."""
ALSO = {"world_size": "mean of rank means"}
QUICK = ("mean_of_means", "no_sync", "zero_grad_inside")
CORRECT = sorted(path.stem for path in CORPUS.glob("correct_*.py"))
UNUSUAL = [
    line.removeprefix("def ").removesuffix("():")
    for line in (HERE / "unusual.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("def ") and line.endswith("():")
]
QUICK_UNUSUAL = ("cached_representations", "gradient_penalty", "skips_bad_steps")


@functools.cache
def of_corpus(name: str) -> ScriptAudit:
    settings = Settings(str(HERE / "corpus.py"), arguments=(str(CORPUS / f"{name}.py"), "ragged", "11"), steps=9)
    return audit_script(settings, (2,))


def check_bug(name: str) -> None:
    faults = [one.kind for one in of_corpus(f"bug_{name}").remarks if one.wrong]
    assert BUGS[name] in faults
    assert set(faults) <= {BUGS[name], ALSO.get(name)}


def faults_of(found: ScriptAudit) -> list[str]:
    return [one.cause for one in found.remarks if one.wrong]


@pytest.mark.parametrize("name", QUICK)
def test_some_bugs_are_named(name: str) -> None:
    check_bug(name)


@pytest.mark.parametrize("name", QUICK_UNUSUAL)
def test_some_unusual_loops_are_not_accused(name: str) -> None:
    found = audit_script(Settings(str(HERE / "unusual.py"), arguments=(name,), steps=9), (1,))
    assert faults_of(found) == []
    assert found.steps > 3


REPEATED = """import torch
torch.manual_seed(0)
model = torch.nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs, targets = torch.randn(4, 6), torch.randint(3, (4,))
for _ in range(3):
    for _ in range(4):
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_the_same_batch_again_and_again_is_no_loss_in_parts(tmp_path: Path) -> None:
    (tmp_path / "overfit.py").write_text(REPEATED, encoding="utf-8")
    (fault,) = [one for one in audit_script(Settings(str(tmp_path / "overfit.py")), (1,)).remarks if one.wrong]
    assert fault.kind == "mass"
    assert fault.mass == pytest.approx(4.0)


def test_a_mean_of_means_comes_with_its_numbers() -> None:
    (fault,) = [one for one in of_corpus("bug_mean_of_means").remarks if one.wrong]
    assert fault.low is not None
    assert fault.high is not None
    assert fault.low < 0.9
    assert fault.high > 1.5
    assert f"between {fault.low:.3g} and {fault.high:.3g} times its due" in fault.cause
    assert fault.place.endswith("bug_mean_of_means.py:51")


def test_a_script_for_gpus_runs_and_what_was_changed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.pt"
    settings = Settings(
        str(HERE / "on_cuda.py"), arguments=("--out", str(out)), steps=9, shrink=("__main__.Model:width=16",)
    )
    found = audit_script(settings, (1, 2))  # LOCAL_RANK is needed with one rank too
    assert faults_of(found) == []
    assert found.targets > 0
    assert not out.exists()
    said = " ".join(found.changes)
    for words in ("cuda: on the CPU", "nccl: gloo", "GradScaler: on the CPU", "torch.compile: not compiled"):
        assert words in said
    for words in ("workers of a DataLoader: none", "checkpoints are not written", "smaller, as --shrink asks"):
        assert words in said
    assert "wandb is not installed: an empty one" in said


DATA_SETS = """class MNIST:
    def __init__(self, root, train=True, download=False):
        self.transforms = None
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")
class FashionMNIST(MNIST):
    pass
"""


def test_a_script_that_asks_much_of_its_surroundings_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lib" / "torchvision" / "datasets"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("from .mnist import MNIST, FashionMNIST")
    (package / "mnist.py").write_text(DATA_SETS)
    monkeypatch.setenv("PYTHONPATH", str(package.parents[1]), prepend=os.pathsep)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settings = Settings(str(HERE / "awkward.py"), steps=9, shrink=("__main__:BATCH=8",))
    found = audit_script(settings, (1,))
    assert found.ok
    assert (found.steps, found.targets) == (6, 48)
    assert list(Path.cwd().iterdir()) == []  # what the script has written itself is removed
    said = " ".join(found.changes)
    for words in (
        "MNIST is not there and cannot be downloaded: 1600 invented images",
        "__main__(BATCH=8)",
        "torch._six",
    ):
        assert words in said
    assert "torch._six" in said
    assert "the script insists on a GPU: it is told that there is one" in said
    assert "checkpoints are not written" in said


STUBBORN = """import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork():
    open(os.environ["SEEN"] + os.environ["RANK"], "w").write("x")
while True:
    time.sleep(60)
"""


def hear_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and so does what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def found(*chosen: str) -> list[str]:
    """Processes that are running, and no zombies."""
    return subprocess.run(["pgrep", "-r", "R,S,D,T", *chosen], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_ranks_and_their_children_end_with_the_command(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    command = [sys.executable, "-m", "tightgrad_lab.cli", "audit", "--run", str(script), "--ranks", "2"]
    environment = {**os.environ, "SEEN": f"{tmp_path}/rank"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment, preexec_fn=hear_interrupts) as process:
        for _ in range(int(patience(60) * 10)):
            if len(list(tmp_path.glob("rank*"))) == 2:
                break
            time.sleep(0.1)
        ranks = found("-P", str(process.pid))
        assert len(ranks) == 2
        sessions = ",".join(ranks)  # each leads one of its own
        assert len(found("-s", sessions)) == 4
        process.send_signal(number)
        assert process.wait() == code
    for _ in range(int(patience(20) * 10)):  # the kernel takes its time to end what was killed
        if not found("-s", sessions):
            return
        time.sleep(0.1)
    assert not found("-s", sessions)


def test_the_command_prints_rows_and_exits_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    script = [str(HERE / "corpus.py"), "--ranks", "1", "--steps", "4", "--json"]
    code = cli.run(["audit", "--run", *script, "--", str(CORPUS / "bug_not_divided.py"), "equal", "8"])
    assert code == 1
    printed = json.loads(capfd.readouterr().out)
    assert printed["ok"] is False
    row = printed["rows"][0]
    assert set(row) == {"kind", "cause", "place", "where", "cure", "wrong", "low", "high", "mass"}
    assert row["mass"] == pytest.approx(4.0, rel=1e-3)


def test_a_crash_says_where_and_exits_with_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit", "--run", str(HERE / "on_cuda.py"), "--ranks", "1", "--", "--crash"]) == 2
    err = capfd.readouterr().err
    assert "on_cuda.py:49 `raise ValueError(" in err
    assert "ValueError: no more" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nothing.py"], "there is no file nothing.py"),
        (["--run", __file__, "-m", "json"], "use one of them"),
        (["--run", __file__, "--ranks", "two"], "write --ranks 1,2"),
        (["--run", __file__, "--shrink", "model.GPT"], "is not of the form module.Class:name=value"),
        ([], "audit needs --run SCRIPT.py, or a FILE.py"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_package_is_named_and_can_be_empty(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "needy.py"
    path.write_text("import nothing_of_the_kind as n\nn.start(1)\n", encoding="utf-8")
    assert cli.run(["audit", "--run", str(path), "--ranks", "1"]) == 2
    assert "--stub nothing_of_the_kind" in capfd.readouterr().err
    assert cli.run(["audit", "--run", str(path), "--ranks", "1", "--stub", "nothing_of_the_kind"]) == 2
    assert "no optimizer step was seen" in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))
@pytest.mark.parametrize("name", [name for name in BUGS if name not in QUICK])
def test_every_bug_is_named(name: str) -> None:
    check_bug(name)


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))
@pytest.mark.parametrize("name", CORRECT)
def test_no_correct_file_is_accused(name: str) -> None:
    assert faults_of(of_corpus(name)) == []


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))
@pytest.mark.parametrize("name", UNUSUAL)
def test_no_unusual_loop_is_accused(name: str) -> None:
    assert faults_of(audit_script(Settings(str(HERE / "unusual.py"), arguments=(name,), steps=9), (1, 2))) == []
