"""Runs the tests and the measurements that need a GPU, each part in a process of its own, within a time limit.

    PYTHONPATH=src python benchmarks/gpu_check.py --out FOLDER [--seconds 540] [--part tests ...] [--device cuda]

Writes FOLDER/PART.json after each step of a part, so that what was measured stays if a later step fails or hangs, and
prints a short table at the end. With `--device cpu --small` it tries itself out.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds at most, in the order in which they run.
PARTS = {"tests": 240, "bits": 40, "codecs-100mb": 90, "codecs-1gb": 110, "clip": 110, "compiled": 150}
NUMELS = {"codecs-100mb": 25_000_000, "codecs-1gb": 250_000_000}
SMALL_NUMEL = 100_000
COMPILE_SECONDS = 75
"""For one codec."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="sizes for trying out")
    parser.add_argument("--workers", type=int, default=6, help="processes of the tests")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.inside:
        BODIES[options.inside](options)
        return 0
    return run_parts(options)


def run_parts(options: argparse.Namespace) -> int:
    """Each part in a process group, killed when its time is over."""
    deadline = time.monotonic() + options.seconds
    summary: dict[str, Any] = {}
    for name in options.part or PARTS:
        limit = min(PARTS[name], deadline - time.monotonic())
        if limit < 10:
            summary[name] = {"outcome": "no time left"}
            continue
        print(f"== {name}, at most {limit:.0f} s", flush=True)
        start = time.monotonic()
        command = [sys.executable, __file__, *sys.argv[1:], "--inside", name]
        outcome = run_within(limit, command, options.out / "log.txt")
        summary[name] = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
        print(f"   {outcome} after {summary[name]['seconds']} s", flush=True)
        (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    print_tables(options.out)
    print(json.dumps(summary))
    return 0 if all(part["outcome"] == "done" for part in summary.values()) else 1


def run_within(limit: float, command: list[str], log: Path) -> str:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT / "src")}
    with log.open("ab") as stream:
        stream.write(f"\n==== {' '.join(command[1:])}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            return "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:  # what it started goes with it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Results:
    """A JSON file that is whole after every row."""

    def __init__(self, options: argparse.Namespace, name: str, **about: Any) -> None:
        import torch

        from tightgrad_lab.environment import environment

        on_gpu = options.device == "cuda"
        device = torch.cuda.get_device_name() if on_gpu else "cpu"
        self._path = options.out / f"{name}.json"
        self.content: dict[str, Any] = {"environment": environment(device, "none"), **about, "rows": [], "missing": {}}
        if on_gpu:
            self.content["environment"] |= {"cuda": torch.version.cuda, "driver": driver()}
        self.write()

    def write(self) -> None:
        self._path.write_text(json.dumps(self.content, indent=1))

    def add(self, rows: list[dict[str, Any]]) -> None:
        self.content["rows"] += rows
        self.write()

    def failed(self, name: str, error: BaseException) -> None:
        self.content["missing"][name] = f"{type(error).__name__}: {str(error)[:300]}"
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        self.write()


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except OSError:
        return "unknown"


def tests(options: argparse.Namespace) -> None:
    """tests/gpu; what failed, with the end of its message."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "--timeout=100"]
        command += ["-o", "filterwarnings=default", "--tb=short", "-r", "fE", "--durations=8", f"--junitxml={report}"]
        if options.workers > 1:
            command += ["-n", str(options.workers), "--dist", "loadfile"]
        environment = {**os.environ, "TIGHTGRAD_TEST_DEVICE": options.device}
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        found = ET.parse(report).getroot()
    results = Results(options, "tests")
    cases = list(found.iter("testcase"))
    bad = [(case, part) for case in cases for part in case if part.tag in ("failure", "error")]
    skipped = [(case, part) for case in cases for part in case if part.tag == "skipped"]
    results.content |= {
        "exit_code": code,
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": [{"test": name_of(case), "text": (part.text or "")[-1500:]} for case, part in bad],
        "skipped": [{"test": name_of(case), "reason": part.get("message")} for case, part in skipped],
    }
    results.write()
    sys.exit(code)


def name_of(case: ET.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"


def bits(options: argparse.Namespace) -> None:
    """How many bytes of a payload, and elements of what it decodes to, differ between the device and the CPU."""
    from dataclasses import replace

    import torch

    from tightgrad.core.types import GradSpec, Payload
    from tightgrad_lab.bench.codecs import CODECS
    from tightgrad_lab.common.labels import label

    flat = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    device = torch.device(options.device)
    results = Results(options, "bits", numel=flat.numel())

    def encoded(codec: Any, values: torch.Tensor) -> Payload:
        return codec.encode(values, GradSpec.of("x", values, seed=1), torch.Generator(values.device).manual_seed(2))

    for codec in CODECS:
        try:
            here, there = encoded(codec, flat), encoded(codec, flat.to(device))
            pairs = [
                (a.view(torch.uint8), b.cpu().view(torch.uint8))
                for a, b in zip(here.tensors, there.tensors, strict=True)
            ]
            payload = Payload(tuple(t.to(device) for t in here.tensors), replace(here.spec, device=device))
            mine, theirs = codec.decode(here), codec.decode(payload).cpu()
            apart = (mine - theirs).abs()
            row = {
                "codec": label(codec),
                "draws": codec.unbiased or codec.card.unbiased,
                "encoded_bytes": here.nbytes,
                "encoded_bytes_apart": sum(int((a != b).sum()) if len(a) == len(b) else len(a) for a, b in pairs),
                "decoded_elements_apart": int((mine != theirs).sum()),
                "decoded_largest_relative": float((apart / mine.abs().clamp(min=1e-30)).max()),
            }
            results.add([row])
        except Exception as error:
            results.failed(repr(codec), error)


def codecs(options: argparse.Namespace) -> None:
    """`tightgrad bench codecs --device cuda`, codec by codec."""
    from tightgrad_lab.bench import codecs as bench

    numel = SMALL_NUMEL if options.small else NUMELS[options.inside]
    results = Results(options, options.inside, numel=numel)
    repeats, warm_up = (1, 1) if options.small else (15, 3)
    for codec in bench.CODECS:
        try:
            found = bench.run(numel, repeats, warm_up, options.device, codecs=(codec,), peers=False)
            results.add(found["rows"])
        except Exception as error:
            results.failed(repr(codec), error)
    found = bench.run(numel, repeats, warm_up, options.device, codecs=(), progress=print)
    results.content["missing"] |= found["missing"]
    results.add(found["rows"])


def clip(options: argparse.Namespace) -> None:
    """`tightgrad bench clip --device cuda`, size by size."""
    from tightgrad_lab.bench import clip as bench

    results = Results(options, "clip")
    for numel in (SMALL_NUMEL,) if options.small else bench.SIZES:
        try:
            counts = (10,) if options.small else bench.TENSORS
            found = bench.run((numel,), counts, 1 if options.small else 9, device=options.device)
            results.content["missing"] |= dict.fromkeys(found["missing"], "not installed, or not on this device")
            results.add(found["rows"])
        except Exception as error:
            results.failed(f"{numel:,}", error)


def compiled(options: argparse.Namespace) -> None:
    """The same kernels through torch.compile: bits, and time next to the eager ones."""
    from tightgrad_lab.bench import compiled as bench

    numel = SMALL_NUMEL if options.small else bench.NUMEL
    repeats, warm_up = (1, 1) if options.small else (15, 3)
    results = Results(options, "compiled", numel=numel)
    signal.signal(signal.SIGALRM, too_long)
    for codec in bench.CODECS:
        signal.alarm(COMPILE_SECONDS)
        try:
            results.add(bench.run(codec, numel, repeats, warm_up, options.device))
        except Exception as error:
            results.failed(repr(codec), error)
        signal.alarm(0)


def too_long(number: int, frame: object) -> None:
    raise TimeoutError("took too long to compile")


BODIES: dict[str, Callable[[argparse.Namespace], None]] = {
    "tests": tests,
    "bits": bits,
    "codecs-100mb": codecs,
    "codecs-1gb": codecs,
    "clip": clip,
    "compiled": compiled,
}


def print_tables(out: Path) -> None:
    """What came of it, in few lines."""
    for path in (out / f"{name}.json" for name in reversed(PARTS)):
        if not path.exists():
            log = out / "log.txt"
            text = log.read_text(errors="replace") if log.exists() else ""
            if path.stem == "tests" and "--inside tests" in text:  # they were stopped
                lines = text.splitlines()
                bad = [line for line in lines if " FAILED " in line or " ERROR " in line]
                print("-- tests, so far:", *(line[:150] for line in bad[-25:]), *lines[-3:], sep="\n   ")
            continue
        content = json.loads(path.read_text())
        if path.stem == "tests":
            print(f"-- tests: {content['passed']} passed, {len(content['failed'])} failed")
            for bad in content["failed"][:25]:
                print(f"   {bad['test'][:110]}: {bad['text'].strip().splitlines()[-1][:120] if bad['text'] else ''}")
        elif path.stem.startswith("codecs"):
            print(f"-- {path.stem}: encode, decode over copy; {content['missing'] or ''}")
            for row in content["rows"]:
                speed = 2 * 4 * content["numel"] / row["copy_seconds"] / 1e9
                ratios = f"{row['encode_ratio_to_copy']:.3f} {row['decode_ratio_to_copy']:.3f}"
                print(f"   {row['codec'][:46]:46} {ratios} {row['relative_error']:.2e} copy {speed:.0f} GB/s")
        elif path.stem == "bits":
            print(f"-- bits: what differs from the CPU; {content['missing'] or ''}")
            for row in content["rows"]:
                if row["encoded_bytes_apart"] or row["decoded_elements_apart"]:
                    found = f"{row['encoded_bytes_apart']} of {row['encoded_bytes']} bytes"
                    found += f", decoded {row['decoded_elements_apart']} by {row['decoded_largest_relative']:.1e}"
                    print(f"   {row['codec'][:46]:46} {'draws, ' if row['draws'] else ''}{found}")
        elif path.stem == "compiled":
            print(f"-- compiled: eager, compiled over copy; {content['missing'] or ''}")
            for row in content["rows"]:
                ratios = f"{row['eager_ratio_to_copy']:.3f} {row['compiled_ratio_to_copy']:.3f}"
                print(f"   {row['what'][:46]:46} {ratios} same bits: {row['same_bits']}")
        elif path.stem == "clip":
            print(f"-- clip: time over torch's; {content['missing'] or ''}")
            for row in content["rows"]:
                if row["active"]:
                    what = f"{row['name']} {row['optimizer']} {row['num_parameters']:,} in {row['num_tensors']}"
                    print(f"   {what[:60]:60} {row['ratio_to_torch']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
