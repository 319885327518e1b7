"""Where reports go: lines of JSON as the answers come, a CSV and a page that appear whole at the end. After an
interruption they hold the answers so far.

    with open_html("page.html") as write: write(report)         and open_json, open_csv, for any number of reports

A pipe or a device is written to and stays one, a symbolic link is followed, and what would lose anything else is
refused. Raises InputError naming the output that cannot be written.
"""

import codecs
import contextlib
import csv
import io
import json
import os
import stat
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from basics.checks import check
from basics.output import temporary_file, write_atomically
from basics.running import InputError
from report.text import page_template
from tokens.generators import LEVELS

STANDARD_OUTPUT = "/dev/stdout"
HEAD = 4096  # bytes by which text is told from anything else
START = b'{"version": 1, "file": "'  # of each line of JSON
LINE = {"version": range(1, 2), "file": str, "error": (str, None)}

# ---------------------------------------------------------------- what an output must not be


def is_stream(path):
    """Whether a path leads to a pipe, a terminal or another device."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def resolved(path):
    """Where a path leads; a pipe has no other name, and a/../b is b although there is no a."""
    return path if is_stream(path) else os.path.realpath(path)


def identity(path):
    """What two paths share that lead to one file, by whatever spelling or link; None of a path that no file can have.

    Where there is no file yet, spellings that a file system may take for one are the same.
    """
    try:
        status = os.stat(path if os.path.exists(path) else resolved(path))
    except OSError:
        return unicodedata.normalize("NFC", resolved(path)).casefold()
    except ValueError:
        return None
    return status.st_dev, status.st_ino


def is_standard_output(path):
    return path is not None and identity(path) == identity(STANDARD_OUTPUT)


def refuse_inputs(outputs, inputs):
    """Raise InputError where one of `outputs`, {flag: path}, is one of the inputs."""
    files = {flag: path for flag, path in outputs.items() if not (is_stream(path) or is_standard_output(path))}
    flags = {identity(path): flag for flag, path in files.items()}
    for path in inputs if files else ():
        if flag := flags.get(identity(path)):
            raise InputError(f"{flag} {outputs[flag]} would be written over the input {path}; name another file")


def refuse_places(outputs, folders):
    """Raise InputError where one of `outputs`, {flag: path}, would lie below one of the folders or beside the models of
    any run, or is a folder, a disk, or a file that is there and no text.
    """
    read = {identity(folder): folder for folder in folders}
    for flag, path in outputs.items():
        if is_standard_output(path):
            continue
        if problem := why_not(path):
            raise InputError(f"{flag} {path} {problem}; name another file")
        above = Path(resolved(path)).parents
        holder = next((read[identity(folder)] for folder in above if identity(folder) in read), None)
        if holder or any((above[0] / f"{level}.keras").exists() for level in LEVELS):
            raise InputError(f"{flag} {path} would lie among the files of {holder or above[0]}; name a file elsewhere")


def why_not(path):
    """Why what is there cannot be written anew, in words."""
    try:
        mode = os.stat(resolved(path)).st_mode
        if stat.S_ISDIR(mode):
            return "is a folder"
        if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            return "is a disk or a socket"
        if stat.S_ISREG(mode):
            with open(resolved(path), "rb") as file:
                head = codecs.getincrementaldecoder("utf-8")().decode(file.read(HEAD))
            return "is there and no report" if "\0" in head else None
    except UnicodeDecodeError:
        return "is there and no report"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def naming(path):
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); make room or name another file") from error


def open_to_add(path):
    """A file open for adding bytes, made with its folder, or a pipe that somebody reads."""
    with naming(path):
        Path(resolved(path)).parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)  # do not wait for a reader
        descriptor = os.open(resolved(path), flags, 0o666)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "ab", buffering=0)


def put(file, text):
    """Write all of a text to an unbuffered file: a pipe may take it in parts."""
    rest = text.encode()
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def open_json(path, add=False):
    """write(report): one line each, at once, without the frames' pictures. The first one takes the place of what is
    there; `add` keeps it.
    """
    with contextlib.ExitStack() as stack:
        file = None if is_standard_output(path) else stack.enter_context(open_to_add(path))

        def begin():
            nonlocal add
            if file and not add and not is_stream(path):
                file.truncate(0)
            add = True

        def write(report):
            if report["error"] is None:
                explanation = report["explanation"]
                frames = [{key: frame[key] for key in frame if key != "image"} for frame in explanation["frames"]]
                report = report | {"explanation": explanation | {"frames": frames}}
            line = json.dumps(report, allow_nan=False) + "\n"
            if not file:
                sys.stdout.write(line)
                sys.stdout.flush()
                return
            with naming(path):
                begin()
                end = os.fstat(file.fileno()).st_size
                try:
                    put(file, line)
                except OSError:
                    if not is_stream(path):
                        file.truncate(end)  # lines are whole
                    raise

        yield write
        begin()


@contextlib.contextmanager
def open_whole(path, content):
    """write(report); when all are there, or what there is after an interruption, content(reports), parts of a text,
    becomes the file.
    """
    reports, ended = [], False
    with contextlib.ExitStack() as stack:
        if is_stream(path):
            stream = stack.enter_context(open_to_add(path))
        else:
            stream, path = None, resolved(path)
            with naming(path):  # while it costs nothing to learn that it cannot be written
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with temporary_file(Path(path).parent):
                    pass

        def write_file(temporary):
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                file.writelines(content(reports))

        try:
            yield reports.append
            ended = True
        finally:
            if stream:
                with naming(path):
                    put(stream, "".join(content(reports)))
            elif reports or ended:  # else what is there stays
                write_atomically(path, write_file)


def open_csv(path):
    """write(report): a row each. A cell that a spreadsheet would read as a formula gets a leading apostrophe."""
    return open_whole(path, csv_lines)


def csv_lines(reports):
    columns = ["file", "sha256", "error", "container", "codec", "size", "fps", "seconds", "windows", "damage"]
    columns += ["too_little"]
    for level in LEVELS:
        columns += [level, f"{level}_probability", f"{level}_summed"]
    columns += ["unknown", "unknown_score", "unknown_threshold", "warnings"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    for report in reports:
        row = {"file": report["file"], "error": report["error"] or ""}
        if report["error"] is None:
            row |= report["media"] | {"too_little": "; ".join(report["evidence"]["reasons"])}
            for level, own in report["levels"].items():
                row |= {level: own["answer"], f"{level}_probability": own["probabilities"][own["best"]]}
                row[f"{level}_summed"] = own["by_generator"]["best"] if own["by_generator"] else ""
            if unknown := report["unknown"]:
                row |= {"unknown": unknown["unknown"], "unknown_score": unknown["value"]}
                row["unknown_threshold"] = unknown["threshold"]
            row["warnings"] = " ".join(report["warnings"])
        writer.writerow({key: harmless(value) for key, value in row.items()})
    return [text.getvalue()]


def harmless(value):
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def open_html(path):
    """write(report): a section each."""
    page = page_template()
    return open_whole(path, lambda reports: page.generate(reports=reports))


# ---------------------------------------------------------------- going on


def answered(path) -> Counter:
    """How often a file of JSON lines answers a file of some bytes, by their SHA-256. Drops from it lines of errors and
    an incomplete last line.
    """
    digests = Counter()
    if not os.path.exists(path):
        return digests
    if is_stream(path):
        raise InputError(f"{path} is no file that --resume could continue; name one")

    def write_answers(temporary):
        with open(path, "rb") as lines, open(temporary, "wb") as kept:
            for line in lines:
                if not line.endswith(b"\n") and START.startswith(line[: len(START)]):
                    break
                if digest := answered_by(line, path):
                    digests[digest] += 1
                    kept.write(line)

    write_atomically(resolved(path), write_answers)
    return digests


def answered_by(line, path):
    """The SHA-256 of the file that a line answers; None of a line of an error."""
    try:
        report = json.loads(line)
        check(report, LINE | ({"media": {"sha256": str}} if report["error"] is None else {}))
        return report["media"]["sha256"] if report["error"] is None else None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} holds no reports of attribute_video.py; choose another --json") from error
