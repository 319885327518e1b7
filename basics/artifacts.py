"""Files that appear whole, one reader for each kind of file, and one comparison of how two things were made.

    write_json("runs/zoo/gen.json", metrics)
    metrics = read_json("runs/zoo/gen.json", ("classes", "recipe"))

Every reader raises InputError naming the file and what to do about it.
"""

import contextlib
import csv
import hashlib
import json
import os
import platform
import sys
import zipfile
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from basics.running import InputError, git_commit

AGAIN = "delete it and run its stage again"

# ---------------------------------------------------------------- writing


def write_atomically(path, write, suffix=""):
    """Let `write(temporary path)` make a file that appears at `path` whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not the process's number: two containers on one file system may both be number 1
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}{suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content: dict):
    write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def write_csv(path, columns, rows):
    """Write rows, dicts; of each the columns alone."""

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def write_arrays(path, arrays: dict):
    """Write an uncompressed .npz; a dict among the arrays, such as a recipe, becomes JSON text."""
    plain = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in arrays.items()}
    write_atomically(path, lambda file: np.savez(file, **plain), suffix=".npz")


# ---------------------------------------------------------------- reading


def read_json(path, keys=()) -> dict:
    """The JSON object of a file, which must have these keys."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {AGAIN}") from error
    missing = set(keys) - set(content) if isinstance(content, dict) else {"everything"}
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; {AGAIN}")
    return content


def read_csv(path, columns, remedy=AGAIN) -> list[dict]:
    """The rows of a CSV file with a header that has these columns. A cell that a row lacks is empty."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            if missing := set(columns) - set(reader.fieldnames or ()):
                raise InputError(f"{path}: missing column(s) {', '.join(sorted(missing))}; {remedy}")
            return list(reader)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {remedy}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); {remedy}") from error


def read_arrays(path, keys=None, remedy=AGAIN, aligned=()) -> dict:
    """Arrays by name of an .npz file, all of them without `keys`; those `aligned` must be of one length. A "recipe",
    a "row" and a "state" come as the dicts that they were. An "embedding" must be finite.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in keys or archive.files}
        for key in {"recipe", "row", "state"} & arrays.keys():
            arrays[key] = json.loads(str(arrays[key]))
        if len({len(arrays[key]) for key in aligned}) > 1:
            raise ValueError("arrays of different lengths")
        if not np.isfinite(arrays.get("embedding", 0)).all():
            raise ValueError("embeddings are not finite")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {remedy}") from error
    except (KeyError, OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); {remedy}") from error
    return arrays


@contextlib.contextmanager
def open_zip(path, remedy=AGAIN):
    """The zip file, open for reading; damage that shows while it is read is an InputError as well."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {remedy}") from error
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: damaged zip ({error}); {remedy}") from error


# ---------------------------------------------------------------- how a thing was made: its recipe

# Kept in recipes and not compared. What lies at the paths is compared by its digest.
NOT_COMPARED = ("paths", "machine", "versions", "git", "seconds")


def make_recipe(arguments: dict, paths=(), machine=(), packages=(), **made_from) -> dict:
    """How a thing is made, to be kept in it: arguments by name, what it is made from, versions of packages, git commit;
    Keras's backend where Keras is in use.

    Arguments in `paths` say where things lie, those in `machine` who computes: neither changes what is made.
    """
    kinds = {"paths": {key: arguments[key] for key in paths}, "machine": {key: arguments[key] for key in machine}}
    given = {key: value for key, value in arguments.items() if key not in (*paths, *machine)}
    made_with = versions(*packages)
    if keras := sys.modules.get("keras"):
        made_with["backend"] = keras.backend.backend()
    recipe = {"arguments": given} | kinds | made_from | {"versions": made_with, "git": git_commit()}
    return json.loads(json.dumps(recipe))


def differing(one: dict, other: dict, besides=(), only=None) -> list[str]:
    """The keys in which two recipes differ, of a dict in them as "prepare.size"; NOT_COMPARED and `besides` left aside,
    or `only` some. Arguments stand by their own names.
    """
    found = []
    for key in (one.keys() | other.keys()) - {*NOT_COMPARED, *besides} if only is None else only:
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            prefix = "" if key == "arguments" else f"{key}."
            found += [prefix + name for name in differing(mine, theirs, besides)]
        elif mine != theirs:
            found.append(key)
    return sorted(found)


def refuse_other(path, found: dict, wanted: dict, remedy="choose another --run, or --overwrite it"):
    """Raise InputError naming what differs where `path` was made by another recipe."""
    if keys := differing(found, wanted):
        raise InputError(f"{path} was made with other settings ({', '.join(keys)}); {remedy}")


def finished_metrics(path, recipe, overwrite=False, unfinished=()) -> dict | None:
    """The content of a finished <name>.json of this very recipe, or None when there is work to do.

    Raises InputError naming what differs when it was made otherwise; `overwrite` clears it and what is `unfinished`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, *unfinished) if overwrite else ():
        Path(file).unlink(missing_ok=True)
    if not path.exists():
        return None
    found = read_json(path, ("recipe",))
    refuse_other(path, found["recipe"], recipe)
    print(f"{path} is up to date (--overwrite makes it anew)")
    return found


def file_digest(path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; name a file that is there") from error


def versions(*packages) -> dict[str, str]:
    """Of Python, NumPy and the packages named, as far as they are installed; none is imported."""
    found = {"python": platform.python_version()}
    for package in ("numpy", *packages):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
