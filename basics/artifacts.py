"""Files written atomically, one reader for each kind of file, and one comparison of how two things were made: with
which settings, from what, and by which code.

    write_json("runs/zoo/gen.json", metrics)
    metrics = read_json("runs/zoo/gen.json", ("classes", "recipe"))

Every reader raises InputError naming the file and what to do about it.
"""

import ast
import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import zipfile
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basics.running import ROOT, InputError

AGAIN = "delete it and run its stage again"

# ---------------------------------------------------------------- writing


def write_atomically(path, write, suffix=""):
    """Write a file by `write(temporary path)` so that it appears at `path` complete or not at all."""
    path = Path(path)
    # not the process's number: two containers on one file system may both be number 1
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path} cannot be written ({why}); make room or name another folder") from error
    finally:
        with contextlib.suppress(OSError):  # a folder of a file's name has none
            temporary.unlink(missing_ok=True)


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


def missing_file(path, remedy):
    return InputError(f"{path} is missing; {remedy.removeprefix('delete it and ')}")


def read_json(path, keys=()) -> dict:
    """The JSON object of a file, which must have these keys."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {AGAIN}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {AGAIN}") from error
    missing = set(keys) - set(content) if isinstance(content, dict) else {"everything"}
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; {AGAIN}")
    if not isinstance(content.get("recipe", {}), dict):
        raise InputError(f"{path}: its recipe is not a JSON object; {AGAIN}")
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
        raise missing_file(path, remedy) from error
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); {remedy}") from error


def read_arrays(path, keys=None, remedy=AGAIN, aligned=()) -> dict:
    """Arrays by name of an .npz file, all of them without `keys`; those `aligned` must be of one length. A "recipe",
    a "row" and a "state" come as the dicts that they were. An "embedding" must be finite.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in keys or archive.files}
        for key in {"recipe", "row", "state"} & arrays.keys():
            arrays[key] = dict(json.loads(str(arrays[key])))
        if len({len(arrays[key]) for key in aligned}) > 1:
            raise ValueError("arrays of different lengths")
        if not np.isfinite(arrays.get("embedding", 0)).all():
            raise ValueError("embeddings are not finite")
    except FileNotFoundError as error:
        raise missing_file(path, remedy) from error
    except (KeyError, OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); {remedy}") from error
    return arrays


def open_output(path, mode="w", newline=None):
    """A text file open for writing, in a folder that is made with it. Raises InputError where that cannot be."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return open(path, mode, newline=newline, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another file") from error


@contextlib.contextmanager
def open_zip(path, remedy=AGAIN):
    """The zip file, open for reading; damage that shows while it is read is an InputError as well."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise missing_file(path, remedy) from error
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, OSError) as error:
        raise InputError(f"{path}: damaged zip ({error}); {remedy}") from error


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
    ours, theirs = one.get("code", {}), other.get("code", {})
    names = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    for key in (one.keys() & other.keys()) - {"code"}:
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            names.update(differing_code(one[key], other[key]))
    return sorted(names)


def refuse_other(path, found: dict, wanted: dict, remedy="choose another --run, or --overwrite it", besides=()):
    """Raise InputError naming what differs where the recipe `found` at `path` has other settings or code."""
    if keys := differing(found, wanted, besides):
        raise InputError(f"{path} was made with other settings ({', '.join(keys)}); {remedy}")
    if names := differing_code(found, wanted):
        raise InputError(f"{path} was made by other code ({first_names(names)}); {remedy}")


def first_names(names, count=3):
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def print_other_code(path, recipe: dict):
    """Say in one line where an input, or the features that it was made from, is of other code than today's."""
    changed, code = [], {}
    for part in (recipe, recipe.get("features", {})):
        code |= part.get("code", {})
    for name, digest in code.items():
        file, _, definition = name.rpartition(":")
        today = read_code(file)[0].get(definition) if (ROOT / file).is_file() else None
        changed += [name] if today is None or today.digest != digest else []
    if changed:
        print(f"{path} was made by other code ({first_names(changed)}) and is used as it is")


def finished_metrics(path, recipe, overwrite=False, unfinished=()) -> dict | None:
    """The content of a finished <name>.json of this very recipe, or None when there is work to do.

    Raises InputError naming what differs when it was made otherwise; `overwrite` clears it and what is `unfinished`.
    """
    path = Path(path)
    for file in (path, *unfinished) if overwrite else ():
        Path(file).unlink(missing_ok=True)
    if not path.exists():
        return None
    metrics = read_json(path, ("recipe",))
    refuse_other(path, metrics["recipe"], recipe)
    print(f"{path} is up to date (--overwrite makes it again)")
    return metrics


# ---------------------------------------------------------------- the code that made a thing

FOLLOWED = ("common.py", "tokens/", "training/", "basics/statistics.py")
NOT_FOLLOWED = ("training/plots.py", "training/service.py")
CHOICES = ("get_args", "build_encoder", "maker_of", "ENCODERS", "LOSSES")  # what flags choose from, and what chooses


def code_of(*starts) -> dict[str, str]:
    """A digest of every definition that some functions or classes reach by name, such as {"common.py:SAGA": "1f0e..."}.

    A name is followed into the starts' own files and FOLLOWED, not into what prints or draws, nor into CHOICES: what a
    flag chose is another start. Digests leave out comments, docstrings, printing and the messages of errors: nothing of
    it changes a number.
    """
    waiting = []
    for start in starts:
        file = os.path.realpath(sys.modules[start.__module__].__file__)
        name = getattr(start, "__qualname__", "").split(".")[0]  # of a nested function the outer one
        if name not in read_code(file)[0]:
            raise InputError(f"{file}: {start} has no name there, so a recipe cannot keep its code; make it a function")
        waiting.append((os.path.relpath(file, ROOT).replace(os.sep, "/"), name))
    starting_files, digests = {file for file, _ in waiting}, {}
    while waiting:
        file, name = waiting.pop()
        definitions, imported = read_code(file)
        if name in imported:
            file, name = imported[name]
            if (file in starting_files or file.startswith(FOLLOWED)) and file not in NOT_FOLLOWED:
                waiting.append((file, name))
        elif name in definitions and f"{file}:{name}" not in digests and not name.startswith(("print_", "draw_")):
            digests[f"{file}:{name}"] = definitions[name].digest
            waiting += [(file, other) for other in definitions[name].names if other not in CHOICES]
    return dict(sorted(digests.items()))


class Definition(NamedTuple):
    digest: str
    names: set[str]  # that occur in it


@functools.lru_cache(maxsize=64)
def read_code(file):
    """Of a module's file its definitions by name, and its imports from the project {name: (file, name there)}."""
    tree, definitions, imported = ast.parse((ROOT / file).read_text(encoding="utf-8")), {}, {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (ROOT / (module := f"{node.module}".replace(".", "/") + ".py")).is_file()
        ):
            imported |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
    for node in filter(None, map(OnlyCode().visit, tree.body)):
        names = {part for part in ast.walk(node) if isinstance(part, ast.Name)}
        defined = {part.id for part in names if isinstance(part.ctx, ast.Store)}  # by an assignment, also under an `if`
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined = {node.name}
        for name in defined:
            before = definitions.get(name, Definition("", set()))
            digest = hashlib.sha256((before.digest + ast.unparse(node)).encode()).hexdigest()[:12]
            definitions[name] = Definition(digest, before.names | {part.id for part in names} - {name})
    return definitions, imported


class OnlyCode(ast.NodeTransformer):
    """Takes docstrings, printing and the messages of errors out of a definition."""

    def visit_Expr(self, node):
        function = node.value.func if isinstance(node.value, ast.Call) else None
        name = getattr(function, "id", getattr(function, "attr", ""))  # print(...), bar.write(...)
        prints = name == "write" or name.startswith(("print", "draw_"))
        return None if prints or isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node


def file_digest(path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; name a file that is there") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file that can") from error


def git_commit() -> str | None:
    """The commit of this checkout, for recipes; None without git."""
    try:
        git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return git.stdout.strip() or None


def versions(*packages) -> dict[str, str]:
    """Of Python, NumPy and the packages named, as far as they are installed; none is imported."""
    numbers = {"python": platform.python_version()}
    for package in ("numpy", *packages):
        with contextlib.suppress(PackageNotFoundError):
            numbers[package] = version(package)
    return numbers
