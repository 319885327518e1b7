"""The generators that a model can name: Table S-1 of SAGA as generators.csv, and the classes of the five levels.

table = load_generators()
class_names("task", table), class_index("task", "SVD", table)      ("Real", "T2V", "I2V"), 2
"""

import functools
import re
import unicodedata
from typing import NamedTuple

from basics.artifacts import read_csv
from basics.running import ROOT, InputError

TABLE = ROOT / "generators.csv"
LEVELS = ("bin", "task", "sd", "team", "gen")
COLUMNS = {"task": "task", "sd": "sd_version", "team": "team", "gen": "name"}  # of a level, in the table


def is_name(text: str) -> bool:
    """Whether a name out of a file can be printed: it is not empty, and nothing in it controls a terminal."""
    return bool(text.strip()) and text.isprintable()


def is_folder_name(text: str) -> bool:
    return is_name(text) and bool(re.fullmatch(r"[^\s./\\][^/\\]*", text))


# Tests of the cells
CELLS = {"name": is_folder_name, "aliases": None} | dict.fromkeys(("task", "sd_version", "team"), is_name)
REMEDY = "write name,aliases,task,sd_version,team as in generators.csv"
MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


class Generator(NamedTuple):
    name: str
    aliases: tuple[str, ...]
    task: str
    sd_version: str
    team: str
    released: str = ""  # YYYY-MM; "" where it is not known, or the table has no such column


def load_generators(path=TABLE) -> dict[str, Generator]:
    """The generator table (Table S-1) by name, in the file's order.

    A column `released`, the month of the first release, may be there. Raises InputError naming the file when another
    column or a cell is missing, a month is none, a name or alias is taken twice, Real is absent, or a fake is Real at a
    level.
    """
    table, taken = {}, {}
    for row in read_csv(path, CELLS, REMEDY):
        aliases = tuple(filter(None, row["aliases"].split("|")))
        generator = Generator(
            row["name"], aliases, row["task"], row["sd_version"], row["team"], row.get("released", "")
        )
        if generator.released and not MONTH.fullmatch(generator.released):
            what = f"released is {generator.released!r}; write YYYY-MM, or leave it empty"
            raise InputError(f"{path}: {generator.name}: {what}")
        for spelling in {spelling_key(name) for name in (generator.name, *aliases)}:
            if spelling in taken:
                raise InputError(f"{path}: {generator.name} and {taken[spelling]} share the name {spelling!r}")
            taken[spelling] = generator.name
        cells = [row[column] for column in COLUMNS.values()]
        if "real" in map(spelling_key, cells) and set(cells) != {"Real"}:
            raise InputError(f"{path}: {generator.name} is Real in some columns and not in others; {REMEDY}")
        table[generator.name] = generator
    if "Real" not in table:
        raise InputError(f"{path}: no row named Real")
    return table


@functools.lru_cache(1 << 16)
def spelling_key(name: str) -> str:
    """Folder names are compared without case, '-', '_' and spaces, and however Unicode composes their letters."""
    return re.sub(r"[-_\s]", "", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()))


def resolve_generator(name: str, generators: dict[str, Generator]) -> str | None:
    """The table's name for a folder name or alias; None when it is outside the table."""
    wanted = spelling_key(name)
    for generator in generators.values():
        if wanted in map(spelling_key, (generator.name, *generator.aliases)):
            return generator.name
    return None


def class_names(level: str, generators: dict[str, Generator] | None = None) -> tuple[str, ...]:
    """The classes of a level: Real first, then in order of first appearance in the table; Unknown, Mixed left out."""
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")
    if level == "bin":
        return ("Real", "Fake")
    generators = generators or load_generators()
    names = ["Real", *(getattr(generator, COLUMNS[level]) for generator in generators.values())]
    return tuple(name for name in dict.fromkeys(names) if name not in ("Unknown", "Mixed"))


def class_index(level: str, generator: str, generators: dict[str, Generator] | None = None) -> int | None:
    """The class of a generator at a level, or None: Unknown or Mixed there, or not in the table.

    At bin every generator but Real is Fake (1, the positive class), in the table or not.
    """
    generators = generators or load_generators()
    name = generator if generator in generators else resolve_generator(generator, generators)
    if level == "bin":
        return int(name != "Real")
    names = class_names(level, generators)
    value = getattr(generators[name], COLUMNS[level]) if name else None
    return names.index(value) if value in names else None


def table_lines(names) -> str:
    """The rows to add to a generator table for generators that it lacks, in words for a message."""
    lines = "; ".join(f"{name},,Unknown,Unknown,Unknown" for name in names)
    return f"to it (--generators), with task, SD version and team where they are known: {lines}"


def level_name(level: str) -> str:
    """The paper's name of a level: GEN-L of gen."""
    return f"{level.upper()}-L"


def stage_of(level: str) -> str:
    """The script that trains a level."""
    return "02_pretrain_binary.py" if level == "bin" else "03_attribute.py"
