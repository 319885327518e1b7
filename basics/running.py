"""Running a command: its errors, its exit status, and the types of its flags."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the project


class InputError(ValueError):
    """An error that the user can fix. The message is one line that names the file and the remedy."""


def reason(error) -> str:
    """One line on why a file could not be read."""
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def run_script(main, interrupted="the same command goes on (without --overwrite)"):
    """Exit with status 0, or with 1 and one line on standard error for an InputError. All else shows its traceback."""
    script = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        sys.exit(f"{script}: {error}")
    except BrokenPipeError:  # whoever read the output has ended, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(f"{script}: interrupted; {interrupted}")


# ---------------------------------------------------------------- types of flags: argparse makes status 2 of ValueError


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def not_negative(text: str) -> float:
    if not 0 <= (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


def at_least_one(text: str) -> float:
    if (number := not_negative(text)) < 1:
        raise ValueError(text)
    return number


def fraction(text: str) -> float:
    """A number from 0 to below 1."""
    if not 0 <= (number := float(text)) < 1:
        raise ValueError(text)
    return number


def names(text: str) -> list[str]:
    """A,B,... without spaces around the commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def names_with_counts(text: str) -> dict[str, int | None]:
    """A,B=5,...: {"A": None, "B": 5}."""
    parts = [name.partition("=") for name in names(text)]
    counts = {name.strip(): positive(count) if equals else None for name, equals, count in parts}
    if len(counts) < len(parts):
        raise ValueError(text)
    return counts


def part_of_parts(text: str) -> tuple[int, int]:
    """I/N: (I, N) with 1 <= I <= N."""
    i, n = (int(number) for number in text.split("/"))
    if not 1 <= i <= n:
        raise ValueError(text)
    return i, n


def fold(text: str) -> tuple[int, int]:
    """K/N: (K, N) with 1 <= K <= N and N >= 2."""
    k, n = part_of_parts(text)
    if n < 2:
        raise ValueError(text)
    return k, n


def count_or_all(text: str) -> int | str:
    return "all" if text == "all" else positive(text)
