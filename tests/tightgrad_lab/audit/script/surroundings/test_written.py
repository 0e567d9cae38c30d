"""What an audited script makes is removed, and nothing that was there before, whatever the script calls it now."""

import subprocess
import sys
from pathlib import Path

import pytest

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

HERE = "here = os.open('.', os.O_RDONLY); sub = os.open('folder', os.O_RDONLY)\n"
BY_DESCRIPTOR = {
    "moved": "os.rename('notes.txt', 'kept', src_dir_fd=here, dst_dir_fd=sub)",
    "moved to a name that the script had made": "open('folder/new', 'w').close(); os.remove('new', dir_fd=sub)\n"
    "os.rename('notes.txt', 'new', dst_dir_fd=sub)",
    "moved twice, by a name of the script's": "open('t', 'w').close(); os.replace('t', 'u'); os.remove('u')\n"
    "os.rename('notes.txt', 't', dst_dir_fd=here); os.rename('t', 'v', src_dir_fd=here)",
    "copied and removed": "shutil.copy('notes.txt', 'copy'); os.unlink('notes.txt', dir_fd=here)",
    "written to, copied and removed": "open('notes.txt', 'a').write('!'); os.utime('notes.txt')\n"
    "shutil.copy('notes.txt', 'copy'); os.unlink('notes.txt', dir_fd=here)",
    "a folder copied and removed": "shutil.copytree('folder', 'new'); shutil.rmtree('folder')",
    "a folder in the place of the script's": "os.mkdir('runs'); open('runs/own', 'w').close()\n"
    "os.rename('runs', 'old'); os.rename('folder', 'runs', src_dir_fd=here)",
    "a link in the place of a folder": "os.mkdir('runs'); open('runs/own', 'w').close()\n"
    "shutil.rmtree('runs'); os.symlink('folder', 'runs', dir_fd=here)",
    "a name that is made elsewhere": "os.close(os.open('notes.txt', os.O_CREAT | os.O_WRONLY, dir_fd=sub))\n"
    "os.unlink('notes.txt', dir_fd=sub)",
    "linked": "os.link('notes.txt', 'other', dst_dir_fd=sub); os.unlink('notes.txt')",
}
"""What a script does with files that were there, relative to open folders among others."""


@pytest.mark.parametrize("what", BY_DESCRIPTOR)
def test_no_content_is_lost_whatever_the_script_does(what, tmp_path):
    home, log = tmp_path / "home", tmp_path / "log"
    (home / "folder").mkdir(parents=True)
    (home / "notes.txt").write_text("notes")
    (home / "folder" / "own").write_text("own")
    program = HOOKED.format(path=written.__file__, log=str(log)) + HERE + BY_DESCRIPTOR[what]
    subprocess.run([sys.executable, "-c", program], cwd=home, check=True)
    written.remove_new([log])
    left = {path.read_text().rstrip("!") for path in home.rglob("*") if path.is_file()}
    assert left >= {"notes", "own"}


def test_what_is_made_in_an_open_folder_is_removed(tmp_path):
    home, log = tmp_path / "home", tmp_path / "log"
    (home / "folder").mkdir(parents=True)
    program = HOOKED.format(path=written.__file__, log=str(log)) + HERE
    program += "os.close(os.open('a', os.O_CREAT | os.O_WRONLY, dir_fd=sub)); os.rename('a', 'b', src_dir_fd=sub)\n"
    program += "os.mkdir('c', dir_fd=sub); os.symlink('b', 'd', dir_fd=sub); os.mkdir('e'); os.rmdir('e', dir_fd=here)"
    subprocess.run([sys.executable, "-c", program], cwd=home, check=True)
    written.remove_new([log])
    assert [path.name for path in home.rglob("*")] == ["folder"]


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
