"""The code that made a thing: a digest of every definition that can change its numbers, for its recipe.

code = code_of(main)                  {"common.py:SAGA": "1f0e...", ...}
print_other_code("runs/zoo/bin.keras", recipe)
"""

import ast
import functools
import hashlib
import os
import sys
from typing import NamedTuple

from basics.artifacts import code_in, first_names
from basics.running import ROOT, InputError, printable

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


def print_other_code(path, recipe: dict):
    """Say in one line where an input, or the features that it was made from, is of other code than today's."""
    changed, features = [], recipe.get("features")
    code = code_in(recipe) | code_in(features if isinstance(features, dict) else {})
    for name, digest in code.items():
        file, _, definition = name.rpartition(":")
        today = read_code(file)[0].get(definition) if is_own(file) else None
        changed += [name] if today is None or today.digest != digest else []
    if changed:
        print(printable(f"{path} was made by other code ({first_names(changed)}) and is used as it is"))


def is_own(file) -> bool:
    """Whether a name out of a recipe is that of a Python file of the project."""
    path = ROOT / file
    return path.suffix == ".py" and path.is_file() and path.resolve().is_relative_to(ROOT)
