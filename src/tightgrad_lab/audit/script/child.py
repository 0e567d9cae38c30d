"""One rank: `python -m tightgrad_lab.audit.script.child FOLDER` runs the script of FOLDER/settings.json."""

import builtins
import gc
import os
import pickle
import runpy
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import tightgrad_lab.audit.script.losses as losses
import tightgrad_lab.audit.script.surroundings.removed as removed
import tightgrad_lab.audit.script.surroundings.written as written
from tightgrad_lab.audit.crash import where_it_failed
from tightgrad_lab.audit.script.recorder import Enough, Recorder
from tightgrad_lab.audit.script.records import Ledger
from tightgrad_lab.audit.script.settings import Settings
from tightgrad_lab.audit.script.surroundings.imports import Changer, Nothing
from tightgrad_lab.audit.script.surroundings.imports import install as install_imports

LEAVE = os._exit
ELSEWHERE = "elsewhere"
"""A file that is there if the script trains in processes that it has started itself."""


def main(folder: Path) -> None:
    """Run the script and leave a ledger."""
    settings = Settings.from_json((folder / "settings.json").read_text(encoding="utf-8"))
    rank, ranks = int(os.environ.get("TIGHTGRAD_RANK", "0")), int(os.environ.get("TIGHTGRAD_RANKS", "1"))
    ledger = Ledger(rank, ranks)
    warnings.simplefilter("ignore")

    def say(words: str) -> None:
        if words not in ledger.remarks:
            ledger.remarks.append(words)

    def progress(steps: int) -> None:
        (folder / f"progress.{rank}").write_text(str(steps), encoding="utf-8")

    written.install(folder / f"written.{rank}", Path.cwd())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    recorder = Recorder(ledger, settings.steps, progress)
    Nothing.folder = str(folder)
    stubs, changer = install_imports(settings, say)
    removed.install(say)
    import tightgrad_lab.audit.script.surroundings.ways_round as surroundings

    losses.install(recorder.loss_seen, recorder.look)
    store = (folder / "store").as_uri()
    cuda = bool(os.environ.get("TIGHTGRAD_PRETEND_CUDA"))
    surroundings.install(recorder, say, store=store, batches=settings.batches, cuda=cuda)
    own = os.getpid()

    def end(alive: object = None) -> NoReturn:
        recorder.finish()
        for package in stubs.used:
            say(f"{package} is not installed: an empty one")
        part = folder / f"ledger.{rank}.part"
        part.write_bytes(pickle.dumps(ledger))
        part.rename(folder / f"ledger.{rank}")
        sys.stdout.flush()
        sys.stderr.flush()
        LEAVE(0 if not ledger.error else 1)  # no teardown of what the script has left in the middle

    def leave(code: int) -> NoReturn:
        if os.getpid() != own or threading.current_thread() is not threading.main_thread():
            LEAVE(code)
        raise SystemExit(code)

    def elsewhere() -> None:
        if os.getpid() != own:
            (folder / ELSEWHERE).touch()
            LEAVE(1)

    vars(os)["_exit"] = leave
    recorder.end, recorder.elsewhere = end, elsewhere
    gc.freeze()  # what is there before the script: nobody looks through it for models that the script has made
    alive: object = None  # what the script has made, and what has to be there when all of it is looked at
    try:
        alive = _run(settings, changer)
        ledger.ended = True
    except Enough as error:
        alive = error
    except SystemExit as error:
        alive = error
        ledger.ended = not error.code
        if error.code:
            ledger.error = f"{settings.name} exits with {error.code}"
    except BaseException as error:
        traceback.print_exc()
        ledger.error = where_it_failed(error, Path(settings.target).resolve(), Path.cwd())
        ledger.missing = getattr(error, "name", "") or "" if isinstance(error, ModuleNotFoundError) else ""
    end(alive)


def _end_with_parent() -> None:
    """A parent that was killed can end nobody."""
    while os.getppid() == int(os.environ.get("TIGHTGRAD_PARENT", os.getppid())):
        time.sleep(1.0)
    LEAVE(1)


def _run(settings: Settings, changer: Changer) -> object:
    if settings.is_module:
        sys.argv = [settings.target, *settings.arguments]
        sys.path.insert(0, str(Path.cwd()))
        return runpy.run_module(settings.target, run_name="__main__", alter_sys=True)
    if sys.path[0] == str(
        Path.cwd()
    ):  # of `python -m`, which has started this process; `python` puts the script's there
        sys.path.pop(0)
    path = str(Path(settings.target).resolve())
    if b"get_ipython(" in Path(path).read_bytes():  # exported from a notebook
        vars(builtins).update(get_ipython=Nothing, display=Nothing())
    sys.argv = [settings.target, *settings.arguments]
    sys.path.insert(0, str(Path(path).parent))
    code = changer.code("__main__", path, Path(path).read_bytes())
    if code is None:
        return runpy.run_path(path, run_name="__main__")
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = path
    exec(code, vars(module))
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]))
