"""List the videos of each generator, in a folder of any usual layout or in a CSV.

rows, ignored = list_videos("folder or CSV", load_generators())
"""

import functools
import itertools
import os
from collections import Counter
from pathlib import Path

from basics.artifacts import read_csv
from basics.running import InputError
from tokens.dataset import Row, subsample
from tokens.generators import resolve_generator
from tokens.pictures import STILL_SUFFIXES
from tokens.videos import VIDEO_SUFFIXES


def list_folder(root, resolve):
    """Rows of the videos below a folder and a Counter of what is ignored."""
    rows, ignored = [], Counter()
    for source in walk(root, ignored):
        parts, suffix = source.split("/"), suffix_of(source)
        if suffix not in VIDEO_SUFFIXES | STILL_SUFFIXES:
            ignored[f"*.{suffix}" if suffix else "without extension"] += 1
        elif labelled := label(parts, resolve):
            generator, tail = labelled
            path = "/".join((generator, *tail))
            rows.append(Row(path, generator, group=path, source=source, file=os.path.join(root, source)))
        else:
            ignored["not in a generator's folder (put it in one, or name its generator in a CSV)"] += 1
    with_videos = {row.generator for row in rows if suffix_of(row.source) in VIDEO_SUFFIXES}
    kept = [row for row in rows if suffix_of(row.source) in VIDEO_SUFFIXES or row.generator not in with_videos]
    ignored["stills beside videos"] += len(rows) - len(kept)
    return kept, ignored


def suffix_of(name):
    return os.path.splitext(name)[1][1:].lower()


def walk(root, ignored):
    """Paths of the files below a folder, symbolic links followed, without hidden and system files."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (target := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(target)
        ignored["hidden or system"] += sum(not is_shown(name) for name in folders + files)
        folders[:] = filter(is_shown, folders)
        for name in filter(is_shown, files):
            file = os.path.join(folder, name)
            if os.path.exists(file) and not os.path.isfile(file):
                ignored["not a regular file"] += 1
            elif file != file.encode("utf-8", "ignore").decode():
                ignored["with a name that is not UTF-8"] += 1
            else:
                yield Path(os.path.relpath(file, root)).as_posix()


def is_shown(name):
    return not name.startswith(".") and name != "__MACOSX"


def label(parts, resolve):
    """(generator, the rest of the index path) of a file's path below the folder of videos; None without a generator."""
    folders = [part.casefold() for part in parts[:-1]]
    if "0_real" in folders:
        below = folders.index("0_real")
        named = max(below - 1, 0)  # DVF's set
    elif "1_fake" in folders[1:]:
        below = folders.index("1_fake", 1)
        named = below - 1
    elif "fake" in folders:
        named = below = folders.index("fake") + 1
    else:
        known = (i for i, part in enumerate(parts[:-1]) if resolve(part))
        named = below = next(known, 0)
    if named >= len(folders) or folders[named] == "1_fake":
        return None
    generator = "Real" if folders[below] == "0_real" else resolve(parts[named]) or parts[named]
    # Two spellings of one generator stay apart, and so do DVF's sets.
    spelling = () if parts[named] == generator else (parts[named],)
    return generator, (*spelling, *parts[below + 1 :])


def list_csv(path, resolve):
    """Rows of the videos that a CSV names."""
    rows = []
    lines = read_csv(path, ("path", "generator"), "expected path,generator[,group,stratum,split]")
    for number, line in enumerate(lines, 2):
        place = f"{path}, line {number}"
        if not line["path"] or not line["generator"]:
            raise InputError(f"{place}: empty path or generator")
        if (split := line.get("split") or "") not in ("", "train", "val", "test"):
            raise InputError(f"{place}: split {split!r} is not train, val, test or empty")
        given, generator = Path(line["path"]), line["generator"].strip()
        generator = resolve(generator) or generator
        tail = [part for part in given.parts if part not in (given.anchor, "..")]
        name = "/".join((generator.replace("/", "_").lstrip(".") or "_", *tail))
        file = os.path.abspath(Path(path).parent / given)
        source = file if ".." in given.parts else given.as_posix()
        group, stratum = line.get("group") or name, line.get("stratum") or ""
        rows.append(Row(name, generator, group, stratum, split, source=source, file=file))
    return rows, Counter()


def list_videos(videos, table, limit=None):
    """The Rows of all videos sorted by path, and a Counter of what is ignored; `limit` is per generator.

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


def counts_text(counts):
    """A Counter in words, for messages."""
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)
