"""Build what is uploaded, and try it as a stranger would: `make release-check`, `make release`. Nothing is uploaded.

`check` builds the two wheels, installs the library's into an environment of its own, and prints the size of each, the
time that `import tightgrad` takes beyond torch, and what README's first example and the command line do there. `build`
first looks that the version has a dated section in the changelog and that nothing is uncommitted, and leaves the
checked files in `dist/`.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_BYTES = 1_000_000  # of the library's wheel
IMPORTS = 5
BATCHES = """
import types
import torch
torch.manual_seed(0)
table = torch.nn.Embedding(16, 16)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = table
    def forward(self, inputs, labels):
        logits = self.table(inputs)[:, :-1].flatten(0, 1)
        return types.SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()))

model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
loader = [{"inputs": rows, "labels": rows} for rows in torch.randint(16, (16, 4, 8))]
"""
SECONDS = """
import time, torch
start = time.process_time()
import tightgrad
print(time.process_time() - start)
"""


def main() -> None:
    """Run `check` or `build`."""
    if sys.argv[1:] == ["build"]:
        refuse_unfinished(ROOT)
        files = built(ROOT / "dist", sdist=True)
        run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)])
        check(files)
        print(f"in {ROOT / 'dist'}: {', '.join(path.name for path in files)}; upload them with twine, the lab first")
    elif sys.argv[1:] == ["check"]:
        with tempfile.TemporaryDirectory() as folder:
            check(built(Path(folder), sdist=False))
    else:
        sys.exit("usage: release.py check|build")


def version(root: Path = ROOT) -> str:
    """Return the version that `src/tightgrad/version.py` has."""
    found = re.search(r'__version__ = "(.+)"', (root / "src/tightgrad/version.py").read_text(encoding="utf-8"))
    return found[1] if found else sys.exit("src/tightgrad/version.py has no __version__")


def refuse_unfinished(root: Path) -> None:
    """Exit unless this tree can be released as it is."""
    number = version(root)
    if re.search(r"[a-z]", number):
        sys.exit(f"version {number} is one of development; write the release's in src/tightgrad/version.py")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(number)} - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        sys.exit(f"CHANGELOG.md has no section '## {number} - YYYY-MM-DD'; give what is new its version and date")
    if run(["git", "status", "--porcelain"], cwd=root).strip():
        sys.exit("there are uncommitted changes; commit them, so that the release can be made again from its commit")


def built(folder: Path, *, sdist: bool) -> list[Path]:
    """Build into the emptied `folder`; return the files, the library's wheel first."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, "TIGHTGRAD_RELEASE": "1"}
    parts = ["--sdist", "--wheel"] if sdist else ["--wheel"]
    run([sys.executable, "-m", "build", *parts, "--outdir", str(folder), str(ROOT)], env=environment)
    lab = str(ROOT / "packages" / "lab")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), lab], env=environment)
    return sorted(folder.iterdir(), key=lambda path: (path.suffix != ".whl", "lab" in path.name))


def check(files: list[Path]) -> None:
    """Print sizes, import time and the result of the install test; exit with 1 if something is wrong."""
    for path in files:
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    if files[0].stat().st_size >= MOST_BYTES:
        sys.exit(f"{files[0].name} is to stay below {MOST_BYTES / 1e6:.0f} MB; the lab's files belong to packages/lab")
    with tempfile.TemporaryDirectory() as folder:
        python, command = (Path(folder) / "bin" / name for name in ("python", "tightgrad"))
        run([sys.executable, "-m", "venv", folder])
        quiet = ["--quiet", "--disable-pip-version-check"]
        run([python, "-m", "pip", "install", *quiet, "-c", ROOT / "constraints.txt", files[0]], cwd=folder)
        run([python, "-W", "error", "-c", "import tightgrad"], cwd=folder)
        seconds = [float(run([python, "-c", SECONDS], cwd=folder)) for _ in range(IMPORTS)]
        print(f"import tightgrad, beyond torch: {statistics.median(seconds):.2f} s of CPU (median of {IMPORTS})")
        run([python, "-W", "error", "-c", BATCHES + first_example() + "print(record)"], cwd=folder)
        said = run([command, "--version"], cwd=folder).strip()
        if said != f"tightgrad {version()}":
            sys.exit(f"`tightgrad --version` says {said!r}")
        run([command, "methods", "topk"], cwd=folder)
        print("install test: README's first example, `tightgrad --version` and `tightgrad methods topk` passed")
        lab = [path for path in files if path.suffix == ".whl"][1]
        run([python, "-m", "pip", "install", *quiet, "-c", ROOT / "constraints.txt", "--find-links", lab.parent,
             f"tightgrad[lab] @ {files[0].as_uri()}"], cwd=folder)  # fmt: skip
        run([command, "report", "--help"], cwd=folder)
        run([python, "-c", "from tightgrad_lab.cases.text.data import *"], cwd=folder)
        print("install test of the extra `lab`: passed")


def first_example() -> str:
    """Return the first Python block of the README."""
    found = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return found[1] if found else sys.exit("README.md has no Python block")


def run(command: list[str | Path], **options: object) -> str:
    """Run a program; return what it printed, or exit with what it said."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:300]} failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return str(done.stdout)


if __name__ == "__main__":
    main()
