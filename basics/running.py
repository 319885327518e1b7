"""Running a command: its errors, its exit status, and the types of its flags."""

import contextlib
import errno
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the project
GRACE = 5  # seconds that an interrupted script may take to come back from code of others, such as TensorFlow's
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class InputError(ValueError):
    """An error that the user can fix. The message is one line that names the file and the remedy."""


def printable(text) -> str:
    """Text without the characters that control a terminal: each stands as its escape, as in "a\\x1b"."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def show_error(kind, error, trace):
    """What Python prints of an error that ends a script while its modules are imported: one line where it is no bug."""
    if issubclass(kind, InputError | KeyboardInterrupt):
        print(f"{Path(sys.argv[0]).name}: {printable(error) or 'interrupted'}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = show_error if sys.excepthook is sys.__excepthook__ else sys.excepthook


def reason(error) -> str:
    """What an error says, in one line: all of an InputError, else the start, with its type unless it is of a value or a
    file.
    """
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if isinstance(error, InputError):
        return text
    kinds = [] if text and isinstance(error, ValueError | OSError) else [type(error).__name__]
    return ": ".join(kinds + [text[:300]] * bool(text))


def run_script(main, interrupted="the same command goes on (without --overwrite)"):
    """Exit with status 0, with 2 for an empty argument, or with 1 and one line on standard error for an InputError, a
    full disk, a path that no file can have, Ctrl-C or SIGTERM. All else shows its traceback.
    """
    read_names_as_utf8()
    open_streams()
    script = Path(sys.argv[0]).name
    farewell = f"{script}: interrupted; {interrupted}"
    if any(not text.strip() or re.fullmatch("--[^=]+=", text) for text in sys.argv[1:]):  # Path("") is Path(".")
        print(f"{script}: error: an argument is empty", file=sys.stderr)
        sys.exit(2)
    try:
        with signals_answered(farewell):
            main()
            sys.stdout.flush()
    except InputError as error:
        sys.exit(f"{script}: {printable(error)}")
    except BrokenPipeError:  # whoever read the output has ended, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno in FULL:
            sys.exit(
                f"{script}: {printable(error.filename or 'output')} cannot be written ({error.strerror}); make room"
            )
        if error.errno not in NO_PATH or not error.filename:
            raise
        sys.exit(f"{script}: {printable(error.filename)} cannot be reached ({error.strerror}); name another path")
    except KeyboardInterrupt:
        sys.exit(farewell)


def read_names_as_utf8():
    """Start again in Python's UTF-8 mode where the locale would have names of files, and texts, in another encoding."""
    if sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_streams():
    """Let closed standard streams lead nowhere: else the next file that is opened would take their place. What a stream
    cannot encode is escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
        elif number and hasattr(getattr(sys, name), "reconfigure"):  # not what a caller put in its place
            getattr(sys, name).reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def signals_answered(farewell):
    """Raise KeyboardInterrupt once for Ctrl-C or SIGTERM. Where the main thread does not come back to Python within
    GRACE, or the signal comes again after that, print the farewell and end at once: all files appear whole or not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answered = threading.Event()

    def answer(number, frame):
        if not answered.is_set():
            answered.set()
            raise KeyboardInterrupt

    def watch():
        end = None
        while number := reader.recv(1):  # written at once, while Python's own handlers wait for the main thread
            if number[0] not in before:
                continue
            end = end or time.monotonic() + GRACE
            if not answered.wait(max(0, end - time.monotonic())) or time.monotonic() > end:
                flush = threading.Thread(target=sys.stdout.flush, daemon=True)
                flush.start()
                flush.join(1)
                os.write(2, f"{farewell}\n".encode())
                os._exit(1)

    # neither ignored, as Ctrl-C is behind nohup, nor answered by a caller
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, answer) for number in ours if signal.getsignal(number) == ours[number]}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        writer.close()  # ends the thread
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- types of flags: argparse makes status 2 of ValueError


def whole(text: str, low: int, high: int) -> int:
    """A whole number from low to high."""
    if not low <= (number := int(text)) <= high:
        raise ValueError(text)
    return number


def positive(text: str) -> int:
    """A whole number of 1 or more, as far as arrays can have so many of anything."""
    return whole(text, 1, 2**31 - 1)


def count_from_0(text: str) -> int:
    """As `positive`, or 0."""
    return whole(text, 0, 2**31 - 1)


def batch_size(text: str) -> int:
    """As many windows or frames as one call may have."""
    return whole(text, 1, 1 << 16)


def seed(text: str) -> int:
    """What NumPy, scikit-learn and Keras take for one."""
    return whole(text, 0, 2**32 - 1)


def port(text: str) -> int:
    """Of TCP; 0 is any that is free."""
    return whole(text, 0, 65535)


def finite(text: str) -> float:
    """A number of which sums fit into float32 as well."""
    if not abs(number := float(text)) < 1e30:
        raise ValueError(text)
    return number


def not_negative(text: str) -> float:
    if (number := finite(text)) < 0:
        raise ValueError(text)
    return number


def at_least_one(text: str) -> float:
    if (number := not_negative(text)) < 1:
        raise ValueError(text)
    return number


def fraction(text: str) -> float:
    """A number from 0 to below 1."""
    if not 0 <= (number := float(text)) < 1:
        raise ValueError(text)
    return number


def unit(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (number := float(text)) <= 1:
        raise ValueError(text)
    return number


def names(text: str) -> list[str]:
    """A,B,..., one name or more, without spaces around the commas."""
    if not (given := [name.strip() for name in text.split(",") if name.strip()]):
        raise ValueError(text)
    return given


def names_with_counts(text: str) -> dict[str, int | None]:
    """A,B=5,...: {"A": None, "B": 5}."""
    parts = [name.partition("=") for name in names(text)]
    counts = {name.strip(): positive(count) if equals else None for name, equals, count in parts}
    if len(counts) < len(parts):
        raise ValueError(text)
    return counts


def part_of_parts(text: str) -> tuple[int, int]:
    """I/N: (I, N) with 1 <= I <= N."""
    i, n = (int(number) for number in text.split("/"))
    if not 1 <= i <= n:
        raise ValueError(text)
    return i, n


def fold(text: str) -> tuple[int, int]:
    """K/N: (K, N) with 1 <= K <= N and N >= 2."""
    k, n = part_of_parts(text)
    if n < 2:
        raise ValueError(text)
    return k, n


def count_or_all(text: str) -> int | str:
    return "all" if text == "all" else positive(text)
