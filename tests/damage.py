"""Damage to a file of any kind: bits, numbers and parts of its bytes, values of JSON, cells of CSV, members of zips."""

import io
import json
import zipfile
from contextlib import suppress
from pathlib import Path

NUMBERS = (b"\0", b"\1", b"\x7f", b"\x80", b"\xff")
VALUES = (None, True, -1, 0, 1, 2**31, 10**30, 0.5, 1e999, -1e999, float("nan"), "", "x", "1", "../../x", "\x1b[31m")
VALUES += ("\udcff", "\0", [], {}, [[]], [1, "a"], {"a": None}, "NEST")
CELLS = ("", "x", "-1", "0", "nan", "1e999", "9" * 30, "x" * 200_000, '"', "../../x", "/etc/passwd", "Real")
CELLS += ("\x1b]0;x\x07", "\udcff")


def damaged(data, suffix, rng):
    """The bytes of a file after one to three edits that its suffix admits."""
    edits = {".json": edit_json, ".csv": edit_csv, ".zip": edit_zip, ".npz": edit_zip, ".keras": edit_zip}
    for _ in range(rng.choice((1, 1, 2, 3))):
        edit = edits.get(suffix) if rng.random() < 0.7 else None
        with suppress(Exception):  # of an edit that the damage before it leaves no place for
            data = (edit or edit_bytes)(data, rng)
    return data


def edit_bytes(data, rng):
    if not data:
        return rng.randbytes(20)
    near = min(len(data), rng.choice((16, 64, 1024, len(data))))  # headers are at an end
    place = rng.randrange(near) if rng.random() < 0.8 else len(data) - 1 - rng.randrange(near)
    size = rng.choice((1, 2, 4, 8))
    some, other = min(len(data), rng.choice((1, 8, 100, 5000))), rng.randrange(len(data))
    return {
        "flip": lambda: data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :],
        "cut": lambda: data[:place],
        "number": lambda: data[:place] + rng.choice(NUMBERS) * size + data[place + size :],
        "insert": lambda: data[:place] + rng.randbytes(some) + data[place:],
        "zero": lambda: data[:place] + bytes(some) + data[place + some :],
        "remove": lambda: data[:place] + data[place + some :],
        "repeat": lambda: data[:place] + data[other : other + some] + data[place:],
    }[rng.choice(("flip", "flip", "cut", "number", "number", "insert", "zero", "remove", "repeat"))]()


def edit_json(data, rng):
    content = json.loads(data)
    places, waiting = [], [content]
    for part in waiting:
        for key in list(part) if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            waiting += [part[key]] if isinstance(part[key], (dict, list)) else []
    part, key = rng.choice(places)
    if rng.random() < 0.2:
        del part[key]
    else:
        part[key] = rng.choice(VALUES)
    return json.dumps(content).replace('"NEST"', "[" * 100_000 + "]" * 100_000).encode()


def edit_csv(data, rng):
    lines = [line.split(",") for line in data.decode(errors="surrogateescape").splitlines()]
    line = rng.choice(lines)
    what = rng.randrange(6)
    if what == 0:
        lines.append(line)
    elif what == 1:
        line.pop()
    elif what == 2:
        return "\n".join(map(",".join, lines)).encode(rng.choice(("utf-16", "utf-8-sig", "cp1252")), "replace")
    else:
        line[rng.randrange(len(line))] = rng.choice(CELLS)
    return "\n".join(map(",".join, lines)).encode(errors="surrogateescape")


def edit_zip(data, rng):
    """Edit, drop, rename or double a member; the others stay as they are."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        members = old.infolist()
        chosen, what = rng.randrange(len(members)), rng.choice(("edit", "edit", "edit", "drop", "rename", "double"))
        for i, member in enumerate(members):
            content, name = old.read(member), member.filename
            if i == chosen:
                if what == "drop":
                    continue
                content = damaged(content, Path(name).suffix, rng) if what == "edit" else content
                name = rng.choice(("../" + name, "x", name.upper())) if what == "rename" else name
            for _ in range(1 + (i == chosen and what == "double")):
                method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                new.writestr(zipfile.ZipInfo(name), content, method if i == chosen else zipfile.ZIP_STORED)
    return written.getvalue()
