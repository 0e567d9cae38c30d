"""What an audited script makes is removed, and nothing that was there before, whatever the script calls it now."""

import subprocess
import sys
from pathlib import Path

from tightgrad_lab.audit.script.surroundings import written

HOOKED = """
import os, runpy, shutil
from pathlib import Path
runpy.run_path({path!r})["install"](Path({log!r}), Path("."))
"""
SCRIPT = """
os.rename("model.pt", "model.bak")
open("model.pt", "w").write("new")
open("best.tmp", "w").write("new")
os.replace("best.tmp", "best.pt")
os.mkdir("runs")
open("runs/log", "w").write("new")
os.mkdir("old")
shutil.move("notes.txt", "old/notes.txt")
open("second", "w").write("new")
os.replace("data.bin", "second")
os.symlink("config.json", "link")
os.rename("folder", "moved")
open("moved/more", "w").write("new")
"""


def test_what_was_there_stays_where_the_script_has_moved_it(tmp_path):
    home, log = tmp_path / "home", tmp_path / "log"
    (home / "folder").mkdir(parents=True)
    for name in ("model.pt", "notes.txt", "data.bin", "config.json", "folder/kept"):
        (home / name).write_text(name)
    program = HOOKED.format(path=written.__file__, log=str(log)) + SCRIPT
    subprocess.run([sys.executable, "-c", program], cwd=home, check=True)
    written.remove_new([log])
    left = {str(path.relative_to(home)): path.read_text() for path in home.rglob("*") if path.is_file()}
    assert left == {
        "model.bak": "model.pt",
        "old/notes.txt": "notes.txt",
        "second": "data.bin",
        "config.json": "config.json",
        "moved/kept": "folder/kept",
    }


def test_names_that_are_numbers_are_left_alone(tmp_path):
    program = HOOKED.format(path=written.__file__, log=str(tmp_path / "log")) + "os.fdopen(os.dup(1), 'w').write('x')"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(tmp_path), check=True, capture_output=True)
    assert done.stdout == b"x"
