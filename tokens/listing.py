"""List the videos of each generator, in a folder of any usual layout or in a CSV.

rows, ignored = list_videos("folder or CSV", load_generators())

Layouts of a folder: <Generator>/; Real/ and Fake/<Generator>/, or Fake/ without generators; of DVF and CNNDetection
<generator>[/<class>]/{0_real,1_fake}/; of GenImage <generator>/<split>/{ai,nature}/. In each there may be train/, val/
and test/ above or below the generators.
"""

import functools
import itertools
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

from basics.artifacts import read_csv
from basics.running import InputError, printable
from tokens.dataset import Row, subsample
from tokens.generators import resolve_generator
from tokens.pictures import STILL_SUFFIXES
from tokens.videos import VIDEO_SUFFIXES

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}


class Ignored(Counter):
    """How many files of each kind are left out; `first` is the name of the first one."""

    def __init__(self):
        super().__init__()
        self.first = {}

    def add(self, kind, name):
        self[kind] += 1
        self.first.setdefault(kind, name)


def generator_name(name):
    """The name of a generator outside the table: one for every Unicode form of it, without control characters."""
    return printable(unicodedata.normalize("NFC", name))


# ---------------------------------------------------------------- a folder


def list_folder(root, resolve):
    """Rows of the videos below a folder, and what is Ignored."""
    rows, ignored, sources = [], Ignored(), []
    for source in walk(root, ignored):
        if (suffix := suffix_of(source)) in VIDEO_SUFFIXES | STILL_SUFFIXES:
            sources.append(source)
        else:
            ignored.add(f"*.{suffix}" if suffix else "without extension", source)
    labels = read_folders({tuple(source.split("/")[:-1]) for source in sources}, resolve)
    for source in sources:
        *folder, name = source.split("/")
        if labelled := labels[tuple(folder)]:
            generator, split, kept = labelled
            path = "/".join((generator, *kept, name))
            rows.append(Row(path, generator, path, split=split, source=source, file=os.path.join(root, source)))
        else:
            ignored.add("not in a generator's folder (put it in one, or name its generator in a CSV)", source)
    with_videos = {row.generator for row in rows if suffix_of(row.source) in VIDEO_SUFFIXES}
    kept = []
    for row in rows:
        if suffix_of(row.source) in VIDEO_SUFFIXES or row.generator not in with_videos:
            kept.append(row)
        else:
            ignored.add("stills beside videos", row.source)
    return kept, ignored


def suffix_of(name):
    return os.path.splitext(name)[1][1:].lower()


def is_shown(name):
    return not name.startswith(".") and name != "__MACOSX"


def walk(root, ignored):
    """Paths of the files below a folder in order, without hidden and system files. Symbolic links are followed but to
    folders that are read anyway.
    """
    seen, top = set(), Path(os.path.realpath(root))
    unreadable = functools.partial(ignored.add, "folder that cannot be read")
    for folder, folders, files in os.walk(root, followlinks=True, onerror=lambda error: unreadable(error.filename)):
        target = Path(os.path.realpath(folder))
        below = target.relative_to(top).parts if target.is_relative_to(top) else (".",)
        if target in seen or (os.path.islink(folder) and below and all(map(is_shown, below))):
            ignored.add("folder that a symbolic link shows again", os.path.relpath(folder, root))
            folders.clear()
            continue
        seen.add(target)
        shown = sorted(filter(is_shown, folders))
        for name in sorted({*folders, *files} - {*shown}):
            file = os.path.join(folder, name)
            source = Path(os.path.relpath(file, root)).as_posix()
            if not is_shown(name):
                ignored.add("hidden or system", source)
            elif os.path.exists(file) and not os.path.isfile(file):
                ignored.add("not a regular file", source)
            elif not is_utf8(source):
                ignored.add("with a name that is not UTF-8", source)
            else:
                yield source
        folders[:] = shown


def is_utf8(name):
    """Whether a name on disk is UTF-8. Raises InputError where it is, and the locale reads it as something else."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeDecodeError:
        return False
    if text != name:
        raise InputError(f"{text}: a name in UTF-8, which this locale does not read; set PYTHONUTF8=1")
    return True


# ---------------------------------------------------------------- what the names of folders say


def key_of(name):
    return unicodedata.normalize("NFC", name).casefold()


def read_folders(folders, resolve):
    """{folder: (generator, split or "", the folders that its videos keep in their path), or None without a generator}.

    `folders` are all that hold videos, as tuples of names below the root. What a name means depends on those beside it
    and below it: `train` beside `test` is a split, and beside `bus` one of a generator's subjects.
    """
    inside = {}  # folder: the names of its folders
    for folder in folders:
        for depth, name in enumerate(folder):
            inside.setdefault(folder[:depth], set()).add(name)
    keys = {folder: {key_of(name) for name in names} for folder, names in inside.items()}

    def beside(folder):
        return keys[folder[:-1]]

    @functools.cache
    def has_names(folder):  # below it, other than of splits
        return any(key_of(name) not in SPLITS or has_names((*folder, name)) for name in inside.get(folder, ()))

    @functools.cache
    def mark(folder):
        name = key_of(folder[-1])
        if name in ("0_real", "1_fake", "fake"):
            return name[-4:]
        if name in ("nature", "ai") and beside(folder) <= {"nature", "ai"} and resolve(folder[-2:][0]) != "Real":
            return "real" if name == "nature" else "fake"
        return "real" if name == "real" and beside(folder) == {"real", "fake"} else None

    above = set()  # folders above generators, and so none themselves
    for folder in folders:
        alone = True
        for depth in range(1, len(folder) + 1):
            place, parents = folder[:depth], {folder[:i] for i in range(depth)}
            if key_of(place[-1]) == "fake" and has_names(place):
                above |= {*parents, place}
            elif mark(place):
                break
            elif resolve(place[-1]):
                above |= parents
            elif alone and beside(place) <= SPLITS.keys() and place != folder and not mark(folder[: depth + 1]):
                above |= parents  # the one root folder of train/ and test/
            alone = alone and len(beside(place)) == 1

    @functools.cache
    def is_split(folder):
        if key_of(folder[-1]) not in SPLITS or resolve(folder[-1]):
            return False
        splits = {SPLITS[name] for name in beside(folder) & SPLITS.keys()}
        siblings = ((*folder[:-1], name) for name in inside[folder[:-1]])
        beside_classes = any(mark(other) or resolve(other[-1]) for other in siblings)
        return len(splits) > 1 or beside(folder) <= SPLITS.keys() or folder in above or beside_classes

    def read(folder):
        places = [folder[: i + 1] for i in range(len(folder))]
        split = next(filter(is_split, places), None)
        names = [place for place in places if place != split]
        marked = min(filter(mark, names), key=lambda place: "_" not in place[-1], default=None)  # 0_real before Fake
        outer, inner = (names[: (at := names.index(marked))], names[at + 1 :]) if marked else (names, [])
        fakes = bool(marked) and mark(marked) == "fake"
        if fakes:
            outer = [place for place in outer if resolve(place[-1]) != "Real"]
        known = next((place for place in outer if resolve(place[-1])), None)
        unknown = next((place for place in outer if place not in above), None)
        named = known or unknown or marked
        if fakes and not known and (key_of(marked[-1]) == "fake" or not unknown) and has_names(marked):
            named = next(iter(inner), None)
        if not named or (not marked and not known and key_of(named[-1]) in SPLITS):
            return None
        generator = resolve(named[-1]) or generator_name(named[-1])
        if marked and (named == marked or not fakes):
            generator = "Fake" if fakes else "Real"
        kept = []
        for place in places:  # two spellings of one generator stay apart, and so do the reals beside its fakes
            spelling = place == named and place[-1] != generator
            if place == split or spelling or (len(place) > len(named) and place != marked):
                kept.append(place[-1])
        return generator, SPLITS[key_of(split[-1])] if split else "", kept

    return {folder: read(folder) for folder in folders}


# ---------------------------------------------------------------- a CSV


def list_csv(path, resolve):
    """Rows of the videos that a CSV names."""
    rows, row_of = [], {}
    columns = dict.fromkeys(("path", "generator"), str.strip)
    for line in read_csv(path, columns, "expected path,generator[,group,stratum,split]"):
        generator, split = line["generator"].strip(), line.get("split", "").strip()
        given, row = Path(line["path"]), f"{line['path']} ({generator})"
        if split not in ("", "train", "val", "test"):
            raise InputError(f"{path}: {row}: split {split!r} is not train, val, test or empty")
        file = os.path.abspath(Path(path).parent / given)
        if file in row_of:
            raise InputError(f"{path}: {row_of[file]} and {row} are one file; keep one of the rows")
        row_of[file] = row
        generator = resolve(generator) or generator_name(generator)
        tail = [part for part in given.parts if part not in (given.anchor, "..")]
        name = "/".join((re.sub(r"[/\\:]", "_", generator).lstrip(".") or "_", *tail))
        source = file if ".." in given.parts else given.as_posix()
        group, stratum = line.get("group") or name, line.get("stratum") or ""
        rows.append(Row(name, generator, group, stratum, split, source=source, file=file))
    return rows, Ignored()


def list_videos(videos, table, limit=None):
    """The Rows of all videos sorted by path, and what is Ignored; `limit` is per generator.

    Raises InputError naming both files when two would share a features file.
    """
    videos = Path(videos)
    if not videos.exists():
        raise InputError(f"{videos}: no such folder or CSV; `python simulate_videos.py` makes data/zoo")
    if not videos.is_dir() and videos.suffix.lower() != ".csv":
        raise InputError(f"{videos}: neither a folder nor a .csv file; give the folder that the video is in")
    resolve = functools.cache(
        functools.partial(resolve_generator, generators=table)
    )  # millions of files lie in few folders
    rows, ignored = list_folder(videos, resolve) if videos.is_dir() else list_csv(videos, resolve)
    if not rows:
        raise InputError(f"{videos}: no videos found; {counts_text(ignored) or 'it is empty'}")
    rows.sort(key=lambda row: (row.path, row.file))
    for row, after in itertools.pairwise(rows):
        if row.path == after.path:
            raise InputError(f"{row.file} and {after.file} would both be {row.path}; rename one or move it")
    return (subsample(rows, ("generator",), limit, "limit") if limit else rows), ignored


def counts_text(ignored):
    """What is Ignored in words, each kind with the first name."""
    kinds = ((kind, ignored[kind], ignored.first[kind]) for kind in sorted(ignored))
    return "; ".join(printable(f"{count} {kind}: {first}{', ...' * (count > 1)}") for kind, count, first in kinds)
