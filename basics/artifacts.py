"""Files written atomically, one reader for each kind of file, and one comparison of how two things were made: with
which settings, from what, and by which code (basics/code.py).

    write_json("runs/zoo/gen.json", metrics)
    metrics = read_json("runs/zoo/gen.json", ("classes", "recipe"))

Every reader raises InputError naming the file and what to do about it.
"""

import codecs
import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import zipfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from basics.checks import ARRAYS, RECIPE, check, check_array
from basics.output import write_atomically
from basics.running import ROOT, InputError, reason

AGAIN = "delete it and run its stage again"

# ---------------------------------------------------------------- writing


def write_json(path, content: dict):
    write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def write_csv(path, columns, rows):
    """Write rows, dicts, with these columns; other keys are left out."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write_bytes(text.getvalue().encode()))


def write_arrays(path, arrays: dict):
    """Write an uncompressed .npz; a dict among the arrays, such as a recipe, becomes JSON text."""
    plain = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in arrays.items()}
    write_atomically(path, lambda file: np.savez(file, **plain), suffix=".npz")


# ---------------------------------------------------------------- reading


MOST_TEXT = 1 << 29  # bytes of a JSON or CSV file
MOST_UNPACKED = 1 << 32  # bytes that a zip's members may claim, where the file is not as large itself
MOST_NESTED = 50  # objects and lists of JSON in one another


@contextlib.contextmanager
def reading(path, wrong, remedy=AGAIN):
    """Make an InputError naming the file of whatever its bytes make a reader raise: within are a library's calls and
    checks that raise ValueError, so no mistake of ours is hidden.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {remedy.removeprefix('delete it and ')}") from error
    except Exception as error:
        if isinstance(error, InputError) and str(path) in str(error):
            raise
        if getattr(error, "filename", None):  # it could not be opened
            raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
        raise InputError(f"{path}: {wrong} ({reason(error)}); {remedy}") from error


def open_bytes(path):
    """The file, open for reading; a pipe that nobody writes to is empty."""
    flag = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda path, flags: os.open(path, flags | flag))  # noqa: SIM115
    if not file.seekable():
        os.set_blocking(file.fileno(), True)
    return file


def read_bytes(path):
    with open_bytes(path) as file:
        content = file.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise ValueError(f"larger than {MOST_TEXT >> 20} MiB")
    return content


def read_json(path, holds=(), remedy=AGAIN) -> dict:
    """The JSON object of a file, which must have these keys, or be as a dict says in the words of `check`."""
    with reading(path, "not valid JSON", remedy):
        content = parse_json(read_bytes(path))
    with reading(path, "not as it was written", remedy):
        check(content, {"recipe?": RECIPE} | (holds if isinstance(holds, dict) else dict.fromkeys(holds, object)))
    return content


def parse_json(text):
    content = json.loads(text)
    json.dumps(content, ensure_ascii=False).encode()  # as in read_array
    level = [content]
    for _ in range(MOST_NESTED):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = list(itertools.chain.from_iterable(inner))
    if level:
        raise ValueError(f"nested deeper than {MOST_NESTED} levels")
    return content


def read_csv(path, columns, remedy=AGAIN) -> list[dict]:
    """The rows of a CSV file with a header that has these columns, as they come from Excel too: separated by commas,
    semicolons or tabs, in UTF-8 or UTF-16. A row has a cell for each of them; one that it lacks of another column is
    empty. `columns` may be a dict of a test for each column: a function of a cell that says whether it can be so.
    """
    with reading(path, "not a CSV file in UTF-8", remedy):
        content = read_bytes(path)
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds a NUL")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if missing := set(columns) - set(reader.fieldnames):
            raise InputError(f"{path}: missing column(s) {', '.join(sorted(missing))}; {remedy}")
        tests, rows = (columns if isinstance(columns, dict) else dict.fromkeys(columns)), []
        for row in reader:
            if any(row.pop(None, ())):
                raise InputError(f"{path}, row {reader.line_num}: more cells than columns; {remedy}")
            for column, test in tests.items():
                if row[column] is None or (test and not test(row[column])):
                    found = "missing" if row[column] is None else repr(row[column])
                    raise InputError(f"{path}, row {reader.line_num}: {column} is {found}; {remedy}")
            rows.append({column: cell or "" for column, cell in row.items()} if None in row.values() else row)
    return rows


def read_arrays(path, keys=None, remedy=AGAIN, holds=None) -> dict:
    """Arrays by name of an .npz file, all of them without `keys`.

    Names of ARRAYS hold what it says, others what `holds` says in the same words. A "recipe", a "row" and a "state"
    come as the dicts that they were; `holds` says of them what `check` does.
    """
    holds, sizes = {"recipe": RECIPE, "row": dict, "state": dict} | ARRAYS | (holds or {}), {}
    with open_zip(path, remedy, wrong="damaged") as archive:
        keys = keys or [name.removesuffix(".npy") for name in archive.namelist()]
        arrays = {key: read_array(archive, key) for key in keys}
        for key in arrays.keys() & holds.keys():
            if isinstance(holds[key], str):
                check_array(key, arrays[key], holds[key], sizes)
            else:
                arrays[key] = parse_json(str(arrays[key]))
                check(arrays[key], holds[key], key)
    return arrays


def read_array(archive, key):
    """An array of an open .npz, for which memory is taken once its header agrees with the size of its member."""
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as file:
        shape, _, dtype = read_header(file)
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{key}: its header says {dtype} {shape}, its size another thing")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
    if dtype.kind == "U":
        "".join(array.ravel().tolist()).encode()  # what is no text, such as half a character, cannot be printed
    return array


def read_header(file):
    """The shape, whether in Fortran's order, and the dtype of an .npy file, which is read up to its data."""
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise ValueError(f"version {version} of .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype} {shape}")
    return shape, fortran, dtype


@contextlib.contextmanager
def open_zip(path, remedy=AGAIN, most=MOST_UNPACKED, wrong="damaged zip"):
    """The zip file, open for reading; damage that shows while it is read is an InputError as well, and so are members
    that claim more than `most` bytes together.
    """
    with reading(path, wrong, remedy), open_bytes(path) as file, zipfile.ZipFile(file) as archive:
        refuse_bomb(path, archive, most)
        yield archive


def refuse_bomb(path, archive, most=MOST_UNPACKED):
    """Raise ValueError where a zip's members claim more bytes than `most` and than the file has."""
    if (claimed := sum(member.file_size for member in archive.infolist())) > max(most, os.path.getsize(path)):
        raise ValueError(f"it would unpack to {claimed / 2**30:.3g} GiB")


# ---------------------------------------------------------------- how a thing was made: its recipe

# Kept in recipes and not compared by `differing`. What lies at the paths is compared by its digest, code by
# `differing_code`.
NOT_COMPARED = ("paths", "machine", "versions", "git", "seconds", "code")


def make_recipe(arguments: dict, paths=(), machine=(), packages=(), **made_from) -> dict:
    """How a thing is made, to be kept in it: arguments by name, what it is made from, versions of packages, git commit;
    Keras's backend where Keras is in use.

    Arguments in `paths` say where things lie, those in `machine` who computes: neither changes what is made.
    `made_from` may hold "code", which code_of gives.
    """
    kinds = {"paths": {key: arguments[key] for key in paths}, "machine": {key: arguments[key] for key in machine}}
    given = {key: value for key, value in arguments.items() if key not in (*paths, *machine)}
    made_with = versions(*packages)
    if keras := sys.modules.get("keras"):
        made_with["backend"] = keras.backend.backend()
    recipe = {"arguments": given} | kinds | made_from | {"versions": made_with, "git": git_commit()}
    return json.loads(json.dumps(recipe))


def differing(one: dict, other: dict, besides=(), only=None) -> list[str]:
    """The keys in which two recipes differ, nested ones as "prepare.size" and arguments by their names. NOT_COMPARED
    and `besides` are left out; `only` some are compared.
    """
    keys = []
    for key in (one.keys() | other.keys()) - {*NOT_COMPARED, *besides} if only is None else only:
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            prefix = "" if key == "arguments" else f"{key}."
            keys += [prefix + name for name in differing(mine, theirs, besides)]
        elif mine != theirs:
            keys.append(key)
    return sorted(keys)


def differing_code(one: dict, other: dict) -> list[str]:
    """The definitions in which the code of two recipes differs, or that of what both were made from."""
    ours, theirs = code_in(one), code_in(other)
    names = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    for key in (one.keys() & other.keys()) - {"code"}:
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            names.update(differing_code(one[key], other[key]))
    return sorted(names)


def code_in(recipe: dict) -> dict:
    code = recipe.get("code")
    return code if isinstance(code, dict) else {}


def refuse_other(path, found: dict, wanted: dict, remedy="choose another --run, or --overwrite it", besides=()):
    """Raise InputError naming what differs where the recipe `found` at `path` has other settings or code."""
    if keys := differing(found, wanted, besides):
        raise InputError(f"{path} was made with other settings ({', '.join(keys)}); {remedy}")
    if names := differing_code(found, wanted):
        raise InputError(f"{path} was made by other code ({first_names(names)}); {remedy}")


def first_names(names, count=3):
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def finished_metrics(path, recipe, overwrite=False, unfinished=()) -> dict | None:
    """The content of a finished <name>.json of this very recipe, or None when there is work to do.

    Raises InputError naming what differs when it was made otherwise, or what is no folder; `overwrite` clears it and
    what is `unfinished`.
    """
    path = Path(path)
    above = next(filter(os.path.lexists, Path(os.path.realpath(path)).parents))
    if not above.is_dir():
        raise InputError(f"{above} is no folder; choose another --run")
    for file in (path, *unfinished) if overwrite else ():
        Path(file).unlink(missing_ok=True)
    if not path.exists():
        return None
    metrics = read_json(path, ("recipe",))
    refuse_other(path, metrics["recipe"], recipe)
    print(f"{path} is up to date (--overwrite makes it again)")
    return metrics


def file_digest(path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open_bytes(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; name a file that is there") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file that can") from error


def git_commit() -> str | None:
    """The commit of this checkout, followed by -dirty where a file is not as committed (results and texts apart, which
    change no number); None without git.
    """
    git = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!*.md"]).stdout
    except OSError:
        return None
    return commit + "-dirty" * bool(changed) if commit else None


def versions(*packages) -> dict[str, str]:
    """Of Python, NumPy and the packages named, as far as they are installed; none is imported."""
    numbers = {"python": platform.python_version()}
    for package in ("numpy", *packages):
        with contextlib.suppress(PackageNotFoundError):
            numbers[package] = version(package)
    return numbers
