"""What the content of a file must be, said in one expression and checked by its reader in basics/artifacts.py.

    check({"epoch": 3}, {"epoch": range(1, 10), "score?": (float, None)})
    check_array("embedding", array, "f V D", sizes={})

Both raise ValueError, in which the part that is not so is named.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`."""

    low: float
    high: float


KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", dict: "an object"}
KINDS |= {list: "a list", object: "anything", None: "null"}
# An array of such a name is so in every .npz, in the words of check_array.
ARRAYS = {"embedding": "f V D", "probabilities": "p V C", "tokens": "f S L T D", "times": "f S L", "valid": "b S L"}
ARRAYS |= dict.fromkeys(("video", "path", "generator", "group", "class", "split", "role"), "U V")
RECIPE = {"arguments?": dict, "paths?": dict, "features?": dict}  # of anything made


def check(value, wanted, name="it"):
    """Raise ValueError unless a value out of JSON is as wanted:

    object, str, bool, dict, list, int, float      anything; a value of that type, where a float is finite or an int
    range(1, 10), Between(0, 1), {"a", "b"}, None  a whole number of it; a number of it; one of these; null
    [float], [float, float]                        a list of such, of any length; of this length
    {"epoch": int, "seed?": int}, {str: int}       an object with these keys, seed may be missing; with any keys
    (float, None)                                  one of these
    """
    inside = "" if name == "it" else f"{name}."
    if isinstance(wanted, dict) and isinstance(value, dict):
        if str in wanted:
            for key, part in value.items():
                check(part, wanted[str], f"{inside}{key}")
            return
        if missing := [key for key in wanted if not key.endswith("?") and key not in value]:
            raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
        for key, part in wanted.items():
            if (key := key.removesuffix("?")) in value:
                check(value[key], part, f"{inside}{key}")
    elif isinstance(wanted, list) and isinstance(value, list) and len(wanted) in (1, len(value)):
        for number, part in enumerate(value):
            check(part, wanted[number % len(wanted)], f"{name}[{number}]")
    elif not is_one(value, wanted):
        raise ValueError(f"{name} is {shown(value)}, not {describe(wanted)}")


def is_one(value, wanted) -> bool:
    """Whether a value is as wanted, where that is no list or object of certain parts."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300
    match wanted:
        case tuple():
            return any(passes(value, one) for one in wanted)
        case range():
            return number and isinstance(value, int) and value in wanted
        case Between():
            return number and wanted.low <= value <= wanted.high
        case set():
            return isinstance(value, str) and value in wanted
        case None:
            return value is None
    if wanted in (int, float):
        return number and isinstance(value, (int, wanted))
    return isinstance(wanted, type) and isinstance(value, wanted)


def passes(value, wanted) -> bool:
    try:
        check(value, wanted)
    except ValueError:
        return False
    return True


def shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def describe(wanted) -> str:
    """What is wanted, in words."""
    match wanted:
        case tuple():
            return " or ".join(map(describe, wanted))
        case range():
            return f"a whole number from {wanted[0]} to {wanted[-1]}"
        case Between():
            return f"a number from {wanted.low} to {wanted.high}"
        case set():
            return f"one of {', '.join(sorted(wanted))}"
        case list():
            return f"a list of {len(wanted)}" if len(wanted) > 1 else "a list"
        case dict():
            return "an object"
    return KINDS[wanted]


def check_array(name, array, wanted, sizes):
    """Raise ValueError unless an array is as wanted, such as "f V 8": its kind and its axes.

    Kinds: f finite floats, p floats from 0 to 1, n floats that may be NaN, i whole numbers, b true or false, U text.
    An axis has the length that is given, or that of the same letter in `sizes`, which learns new ones.
    """
    kind, *axes = wanted.split()
    if len(axes) == array.ndim:
        axes = [
            int(axis) if axis.isdecimal() else sizes.setdefault(axis, n)
            for axis, n in zip(axes, array.shape, strict=True)
        ]
    if tuple(axes) != array.shape:
        raise ValueError(f"{name} has the shape {array.shape}, not ({', '.join(map(str, axes))})")
    if array.size and array.dtype.kind not in {"p": "f", "n": "f", "i": "iu"}.get(kind, kind):
        raise ValueError(f"{name} holds {array.dtype}")
    if kind in "fp" and not np.isfinite(array).all():
        raise ValueError(f"{name}: not all values are finite")
    if kind == "p" and array.size and not -1e-3 <= array.min() <= array.max() <= 1 + 1e-3:
        raise ValueError(f"{name}: not all values are from 0 to 1")
