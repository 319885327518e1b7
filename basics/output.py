"""Outputs that appear whole, and the temporary files and folders that are there meanwhile. What a killed process leaves
of them is cleared by the next one that makes one in the same folder.
"""

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from pathlib import Path

from basics.running import InputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
NAME = re.compile(r"\.tmp-([0-9a-f]{8})-[0-9a-f]{12}(\.\w+)?")
DAY = 24 * 60 * 60  # in seconds: nothing takes as long to write

# ---------------------------------------------------------------- outputs


def output_path(path) -> Path:
    """Where an output lies, symbolic links followed, in a folder that is made with it. Raises OSError where it cannot
    be, or where something else than a file is there.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        raise OSError(errno.EINVAL, "a folder or a special file is there")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def write_atomically(path, write, suffix=""):
    """Write a file by `write(temporary path)` so that it appears at `path` complete or not at all."""
    try:
        target = output_path(path)
        with temporary_file(target.parent, suffix) as temporary:
            write(temporary)
            os.replace(temporary, target)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path} cannot be written ({why}); make room or name another folder") from error


# ---------------------------------------------------------------- temporaries


def temporary_file(folder, suffix=""):
    """In a `with` statement: the path of a new file in a folder, which is gone afterwards unless it was moved."""
    return held(folder, suffix, lambda path: path.touch(exist_ok=False))


def temporary_folder():
    """In a `with` statement: the path of a new folder, which is gone afterwards."""
    return held(tempfile.gettempdir(), "", lambda path: path.mkdir(0o700))


@contextlib.contextmanager
def held(folder, suffix, make):
    """A temporary that is locked while it is in use. The number of its process would not do: two containers on one file
    system may both be number 1.
    """
    clear(os.path.realpath(folder))
    with contextlib.ExitStack() as stack:
        path = None
        while path is None or not path.exists():  # another process may clear it before it is locked
            path = Path(folder) / f".tmp-{MACHINE}-{os.urandom(6).hex()}{suffix}"
            make(path)
            with contextlib.suppress(OSError):
                stack.enter_context(lock(path))
        stack.callback(remove, path)
        yield path


@functools.cache  # once a process: a folder may hold very many files
def clear(folder):
    """Remove what processes that have ended left in a folder: locks tell on this machine, age on others."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if name := NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY:
                        remove(entry.path)
                    elif name[1] == MACHINE:
                        with lock(entry.path):
                            remove(entry.path)


@contextlib.contextmanager
def lock(path):
    """Hold the lock of a path. Raises OSError where another process holds it, or where there are no locks."""
    if not fcntl:
        raise OSError("no locks on this system")
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
