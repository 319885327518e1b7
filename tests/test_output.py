"""Outputs appear whole where links lead, replace nothing but files, and what a killed process leaves is cleared."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from basics import output
from basics.output import temporary_folder, write_atomically
from basics.running import ROOT, InputError

KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from basics.output import temporary_folder, write_atomically
tempfile.tempdir = sys.argv[1]
def write(path):
    path.write_text("half")
    with temporary_folder() as folder:
        (folder / "unpacked").write_text("half")
        print("writing", flush=True)
        sys.stdin.read() if sys.argv[2] == "waits" else os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]) / "a.txt", write)
"""


def temporaries(folder):
    return sorted(path for path in folder.iterdir() if path.name.startswith(".tmp-"))


@pytest.fixture
def anew():
    """As in a process of its own, which has cleared no folder yet."""
    output.clear.cache_clear()


def half_written(folder, how):
    command = [sys.executable, "-c", KILLED, str(folder), how]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["is killed", "waits"])
def test_next_process_clears_what_a_killed_one_leaves_and_nothing_of_a_living_one(tmp_path, anew, how):
    with half_written(tmp_path, how) as process:
        assert process.stdout.readline() == "writing\n"
        if how == "is killed":
            process.wait()
        assert len(temporaries(tmp_path)) == 2
        write_atomically(tmp_path / "b.txt", lambda path: path.write_text("b"))
        assert len(temporaries(tmp_path)) == (0 if how == "is killed" else 2)
        process.kill()


@pytest.mark.parametrize("days", [0.5, 1.5])
def test_age_tells_where_another_machine_wrote(tmp_path, anew, days, monkeypatch):
    monkeypatch.setattr(output, "MACHINE", "0123abcd")
    monkeypatch.setattr(output, "remove", lambda path: None)
    with output.temporary_file(tmp_path, ".npz") as path:
        pass
    monkeypatch.undo()
    os.utime(path, (time.time() - days * output.DAY,) * 2)
    output.clear.cache_clear()
    write_atomically(tmp_path / "b.txt", lambda path: path.write_text("b"))
    assert path.exists() == (days < 1)


def test_a_folder_is_looked_through_once_a_process(tmp_path, anew, monkeypatch):
    folders, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: folders.append(folder) or scandir(folder))
    for name in "abc":
        write_atomically(tmp_path / name, lambda path: path.write_text("text"))
    assert folders == [str(tmp_path)]


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no fcntl"])
def test_names_that_fill_a_file_system_are_written(tmp_path, anew, locks, monkeypatch):
    monkeypatch.setattr(output, "fcntl", output.fcntl if locks else None)
    for name in ("n" * 255, "字" * 85, "n" * 250 + ".json"):
        write_atomically(tmp_path / name, lambda path: path.write_text("text"))
        assert (tmp_path / name).read_text() == "text"
    with temporary_folder() as folder:
        (folder / "file").touch()
    assert not folder.exists() and not temporaries(tmp_path)


def save(path):
    write_atomically(path, lambda file: file.write_text("new"))


def test_outputs_follow_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "old").write_text("old")
    for name, target in (("to old", "elsewhere/old"), ("to none", "elsewhere/none")):
        (tmp_path / name).symlink_to(target)
        save(tmp_path / name)
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_text() == "new"


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "loop", "link"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "output"
    if kind == "device":
        path = Path("/dev/full")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/full")
    before = path.lstat()
    with pytest.raises(InputError, match=f"{path} cannot be written"):
        save(path)
    assert path.lstat().st_mode == before.st_mode
