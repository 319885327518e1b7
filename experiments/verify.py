"""Are committed results what this code measures? `reproduce.py --verify [NAME]` measures their seed 0 again.

reads   results/**/*.json with their provenance (results.py)
writes  nothing that stays: all models are trained from scratch, in a temporary folder unless --run names one

On the backend, versions and cores that a result was made with, every test clip must get the class that it had, and
every number of seed 0 be the same. Elsewhere, accuracies must be within the 95% interval of as many clips.
"""

import math
import shlex
from pathlib import Path

from basics.artifacts import differing, read_json, reading
from basics.output import temporary_folder
from basics.running import InputError
from basics.statistics import wilson_interval
from experiments.registry import run_entry
from experiments.results import PROVENANCE

NOT_COMPARED = {"provenance", "measured", "seconds", "collapsed"}  # the last counts all seeds
COST = {"run", "steps", "budget", "stage_1_budget"}  # of the first seed that did not collapse
AGAIN = "restore it, or delete it and measure it again"
DATA = ("data", "features", "encoder", "full", "few", "folds", "limit")  # flags that choose which results


def verify(args, get_args):
    """Print a verdict for every model and row of the results of args.name on the data of `args`, or of all results.
    Raises InputError where one differs. `get_args` makes arguments of a recorded command.
    """
    recorded = {}
    for path in sorted(Path(args.results).rglob("*.json")):
        if made := read_json(path, {"provenance?": PROVENANCE}, AGAIN).get("provenance"):
            with reading(path, "not as it was written", AGAIN):
                again = get_args(shlex.split(made["command"])[2:])
            alike = all(getattr(again, key) == getattr(args, key) for key in DATA)
            if not args.name or (alike and again.name == args.name):
                recorded.setdefault(made["command"], (again, []))[1].append(path.relative_to(args.results))
    if not recorded:
        what = f"of {args.name}" if args.name else "on this data"
        raise InputError(f"{args.results}: no result {what} says how it was made; run reproduce.py NAME first")
    lines, wrong = [], []
    with temporary_folder() as folder:
        for again, paths in recorded.values():
            again.seeds, again.overwrite, again.verify = 1, False, True
            again.run, again.results = args.run or folder / "runs", folder / "results"
            run_entry(again)
            for path in paths:
                rows = compare(read_json(Path(args.results) / path), read_json(folder / "results" / path))
                lines += [f"{path}, {row}: {'' if right else 'DIFFERS, '}{what}" for row, (right, what) in rows.items()]
                wrong += [path] * (not all(right for right, _ in rows.values()))
    print("\n".join(["", *lines]))
    if wrong:
        names = ", ".join(map(str, wrong))
        raise InputError(f"{names} in {args.results} are not what was measured now, see above; measure them again")


def compare(then, now):
    """{row: (whether it is as it was, a verdict)} of recorded results and those of seed 0 measured now."""
    made, remade = then["provenance"], now["provenance"]
    if made["data"] != remade["data"]:
        return {"data": (False, f"other features: {made['data']} then, {remade['data']} now")}
    same, rows = made["made_with"] == remade["made_with"], {}
    for name, own in made["trained"].items():
        of_seed_0 = any(part.split("-")[0] == "seed0" for part in own["runs"])
        if of_seed_0 and (verdict := compare_model(own, remade["trained"].get(name), same)):
            rows[name] = verdict
    for row, pairs in by_row(then, now).items():
        rows[row] = compare_numbers(pairs) if same else compare_accuracies(pairs)
    return rows


def compare_model(then, now, same):
    """The verdict on a model by the classes of its test clips; None of one without such."""
    if now is None:
        return False, "not trained now"
    if keys := differing(then["settings"], now["settings"]):
        return False, f"other settings ({', '.join(keys)})"
    pairs = [(then["runs"].get(part, {}), run) for part, run in now["runs"].items() if "answers" in run]
    if not pairs:
        return None
    if same:
        old, new = ("".join(pair[i].get("answers", "") for pair in pairs) for i in (0, 1))
        changed = sum(one != other for one, other in zip(old, new, strict=False)) + abs(len(old) - len(new))
        return not changed, f"another class for {changed} of {len(new)} clips" if changed else f"{len(new)} clips alike"
    (videos, correct), (count, right) = (
        [sum(pair[i].get(key, 0) for pair in pairs) for key in ("videos", "correct")] for i in (0, 1)
    )
    return within(correct / max(videos, 1), right / count, max(videos, 1))


def within(then, now, videos):
    low, high = wilson_interval(then * videos, videos)
    verdict = f"accuracy {now:.3f}, {then:.3f} ({low:.3f}-{high:.3f}) on another backend, version or processor"
    return low <= now <= high, verdict


# ---------------------------------------------------------------- two trees of numbers


def nodes(then, now, path=()):
    """(path, recorded, measured now) of a tree and all its branches, of seed 0 in the recorded one."""
    yield path, then, now
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            if key not in NOT_COMPARED and not (key in COST and key not in now):  # seed 0 collapsed
                yield from nodes(then.get(key), now.get(key), (*path, key))
    elif isinstance(then, list) and isinstance(now, list):
        then = [part for part in then if not isinstance(part, dict) or part.get("seed", 0) == 0]
        for i, part in enumerate(now):
            texts = [value for value in part.values() if isinstance(value, str)] if isinstance(part, dict) else []
            yield from nodes(then[i] if i < len(then) else None, part, (*path, " ".join(texts) or f"{i}"))


def by_row(then, now):
    """{row: [(path, recorded, measured now)]}; a row is a part of a part of the results: "arms/1-stage few CE"."""
    rows = {}
    for path, *pair in nodes(then, now):
        if path:
            rows.setdefault("/".join(path[:2] if len(path) > 2 else path[:1]), []).append((path, *pair))
    return {row: pairs for row, pairs in rows.items() if any(map(is_leaf, pairs))}


def is_leaf(pair):
    _, then, now = pair
    return not (type(then) is type(now) and isinstance(then, dict | list))


def compare_numbers(pairs):
    leaves = list(filter(is_leaf, pairs))
    for path, then, now in leaves:
        numbers = isinstance(then, int | float) and isinstance(now, int | float)
        if not (math.isclose(then, now, rel_tol=1e-6, abs_tol=1e-6) if numbers else then == now):
            return False, f"{'/'.join(path)} was {then}, is {now}"
    return True, f"{len(leaves)} values alike"


def compare_accuracies(pairs):
    """As compare_numbers, but by the intervals of accuracies whose number of clips is known."""
    verdicts = []
    for _, then, now in pairs:
        for key in ("micro", "accuracy"):
            if all(isinstance(own, dict) and {key, "videos"} <= own.keys() for own in (then, now)):
                verdicts.append(within(then[key], now[key], then["videos"]))
    return next((own for own in verdicts if not own[0]), verdicts[0] if verdicts else NOT_COMPARABLE)


NOT_COMPARABLE = (True, "not comparable on another backend, version or processor")
