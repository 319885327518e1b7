"""A report as text for a terminal, a line of JSON, a row of CSV, or a section of an HTML page that needs nothing else.

    print(text_report(report))
    with open_html("report.html") as write: write(report)         and open_json, open_csv, for any number of reports

Whatever comes from a file, its name first of all, is escaped for each of them.
"""

import base64
import contextlib
import csv
import json
import sys
from pathlib import Path

import numpy as np

from basics.artifacts import open_output, write_atomically
from basics.running import InputError
from tokens.generators import LEVELS, level_name

# ---------------------------------------------------------------- words


def printable(text):
    """Text without the characters that control a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(probability):
    """A probability in two digits, never as 0 or 1."""
    return "<0.01" if probability < 0.005 else ">0.99" if probability > 0.995 else f"{probability:.2f}"


def runners_up(own, count=2):
    named = own["probabilities"].items()
    return ", ".join([f"{name} {shown(value)}" for name, value in named if name != own["best"]][:count])


def answer_of(own):
    return own["answer"] if own["answer"] == own["best"] else f"{own['answer']} (nearest: {own['best']})"


def answer_line(report):
    """The answers at all levels in one line."""
    if report["error"] is not None:
        return f"not answered: {report['error']}"
    if reasons := report["evidence"]["reasons"]:
        return f"too little evidence: {'; '.join(reasons)}"
    levels = report["levels"].values()
    parts = []
    for entry in levels:
        confidence = shown(entry["probabilities"][entry["best"]])
        parts.append(answer_of(entry) + (f" {confidence}" if entry["answer"] == entry["best"] else ""))
    return ", ".join(parts)


def media_line(media):
    rate = f"{media['fps']:g} frames a second, {media['seconds']:g} s" if media["fps"] else "one frame"
    return f"{media['container']}, {media['codec']}, {media['size']}, {rate}; C2PA manifest {media['c2pa']}"


def summed_line(summed):
    best = f"{summed['best']} {shown(summed['probabilities'][summed['best']])}"
    undefined = f"not defined {shown(summed['not_defined'])}"
    if summed["agrees"] is None:
        return f"{undefined}, {best}"
    return f"{best}, {undefined}" if summed["not_defined"] >= 0.005 else best


def accuracy_line(measured):
    pairs = (("accuracy", "majority"), ("macro_accuracy", "uniform"))
    return " / ".join(f"{measured[key]:.2f} (chance {measured[chance]:.2f})" for key, chance in pairs)


TRUST = {
    "own": "trust the level's model",
    "generator": "trust the generator's sums",
    None: "neither is measurably better",
}


def disagreements(report):
    """Yield a sentence for each level whose model and the generator's sums differ, with how often each was correct."""
    for level, own in report["levels"].items():
        summed = own["by_generator"]
        if not summed or summed["agrees"]:
            continue
        if summed["agrees"] is None:
            yield (
                f"{level_name(level)}: most of the generator's probability ({shown(summed['not_defined'])}) is on"
                f" generators without a class at this level, and the level's model can choose only among its classes."
            )
            continue
        line = f"{level_name(level)}: the level's model predicts {own['best']}, the generator's sums {summed['best']}."
        if measured := summed["measured"]:
            line += (
                f" They differed on {measured['differ']} of {measured['clips']} test clips: the level's model"
                f" was correct on {measured['own_right']}, the sums on {measured['generator_right']};"
                f" {TRUST[measured['trust']]}."
            )
        yield line


def unknown_line(unknown):
    decision = "Yes, it is unlike all classes of the run, Real included" if unknown["unknown"] else "No"
    line = (
        f"Unknown generator? {decision}: {unknown['score']} score {unknown['value']:.4g},"
        f" threshold {unknown['threshold']:.4g}, set to reject {unknown['rate']:.0%} of clips by known generators"
    )
    if test := unknown["test"]:
        line += f" (on test {test['rejected']} of {test['clips']})"
    if unknown["auroc"]:
        line += f"; AUROC {unknown['auroc']['value']:.2f} on generators that it was not trained on (chance 0.50)"
    return f"{line}."


def nearest_line(nearest):
    clips = (f"{clip['video']} at {clip['seconds']:g} s ({clip['distance']:.3g})" for clip in nearest["clips"])
    usual = nearest["usual"]
    return f"{', '.join(clips)}; of {usual['split']} clips the nearest is at {usual['median']:.3g} (median)"


def run_line(run):
    features, seen = run["features"], run["trained_on"]
    line = f"Run {run['name']}: encoder {features['encoder']}, {features['fps']} frames a second; trained and tested on"
    trained = f", {seen['videos']} training clips" if seen else ""
    return f"{line} {run['data']}{trained}."


# ---------------------------------------------------------------- text


def text_report(report) -> str:
    if report["error"] is not None:
        return printable(f"{report['file']}: {answer_line(report)}")
    windows = report["media"]["windows"]
    lines = [f"{media_line(report['media'])}; {windows} window{'s' * (windows != 1)}"]
    table = [("level", "answer", "p", "runners-up", "windows", "summed from GEN-L", "run's accuracy, micro / macro")]
    for level, own in report["levels"].items():
        row = (level_name(level), answer_of(own), shown(own["probabilities"][own["best"]]), runners_up(own))
        row += (f"{own['votes'].get(own['best'], 0)} of {len(own['windows'])}",)
        row += (summed_line(own["by_generator"]) if own["by_generator"] else "", accuracy_line(own["measured"]))
        table.append(row)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
    lines += [*report["evidence"]["reasons"], *disagreements(report)]
    lines += [unknown_line(report["unknown"])] if report["unknown"] else []
    lines += [f"Nearest training clips: {nearest_line(report['nearest'])}"] if report["nearest"] else []
    lines += [run_line(report["run"]), *(f"! {warning}" for warning in report["warnings"])]
    return "\n".join(printable(line.rstrip()) for line in [report["file"], *(f"  {line}" for line in lines)]) + "\n"


# ---------------------------------------------------------------- JSON and CSV: written as the reports come


def answered(path) -> set[str]:
    """The files that a file of JSON lines answers. Drops from it lines of errors and an incomplete last line."""
    if not Path(path).exists():
        return set()
    kept, names = [], set()
    for line in Path(path).read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            name, error = (json.loads(line)[key] for key in ("file", "error"))
        except (ValueError, TypeError, KeyError) as wrong:
            raise InputError(f"{path} holds no reports of attribute_video.py; choose another --json") from wrong
        if error is None:
            kept.append(line)
            names.add(name)
    write_atomically(path, lambda file: file.write_bytes(b"".join(kept)))
    return names


@contextlib.contextmanager
def open_json(path, add=False):
    """write(report): one line each, without the frames' pictures; `add` keeps what is there, "-" is standard output."""
    with contextlib.ExitStack() as stack:
        file = sys.stdout if path == "-" else stack.enter_context(open_output(path, "a" if add else "w"))

        def write(report):
            if report["error"] is None:
                explanation = report["explanation"]
                frames = [{key: frame[key] for key in frame if key != "image"} for frame in explanation["frames"]]
                report = report | {"explanation": explanation | {"frames": frames}}
            file.write(json.dumps(report, allow_nan=False) + "\n")
            file.flush()

        yield write


@contextlib.contextmanager
def open_csv(path):
    """write(report): a row each. A cell that a spreadsheet would read as a formula gets a leading apostrophe."""
    columns = ["file", "sha256", "error", "container", "codec", "size", "fps", "seconds", "windows", "too_little"]
    for level in LEVELS:
        columns += [level, f"{level}_probability", f"{level}_summed"]
    columns += ["unknown", "unknown_score", "unknown_threshold", "warnings"]
    with open_output(path, newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()

        def write(report):
            row = {"file": report["file"], "error": report["error"] or ""}
            if report["error"] is None:
                row |= report["media"] | {"too_little": "; ".join(report["evidence"]["reasons"])}
                for level, own in report["levels"].items():
                    row |= {level: own["answer"], f"{level}_probability": own["probabilities"][own["best"]]}
                    row[f"{level}_summed"] = own["by_generator"]["best"] if own["by_generator"] else ""
                if unknown := report["unknown"]:
                    row |= {"unknown": unknown["unknown"], "unknown_score": unknown["value"]}
                    row["unknown_threshold"] = unknown["threshold"]
                row["warnings"] = " ".join(report["warnings"])
            writer.writerow({key: harmless(value) for key, value in row.items()})
            file.flush()

        yield write


def harmless(value):
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# ---------------------------------------------------------------- HTML, and other templates

CELLS = 100  # of a strip over time, at most


@contextlib.contextmanager
def open_html(path):
    """write(report): a section each; the page appears when all are there, or what there is after an interruption."""
    helpers = (shown, runners_up, answer_of, media_line, summed_line, accuracy_line, disagreements, unknown_line)
    helpers += (run_line, answer_line, vote_cells, named_maps, level_name)
    page, reports = template("page.html", *helpers), []
    write_atomically(path, Path.touch)  # while it costs nothing to learn that it cannot be written
    try:
        yield reports.append
    finally:
        write_atomically(path, lambda file: page.stream(reports=reports).dump(str(file), encoding="utf-8"))


def vote_cells(windows, names):
    """Equal parts of a level's windows, (start, end, the place in `names` of the class that most of them vote for)."""
    count = min(len(windows), CELLS)
    for i in range(count):
        part = windows[i * len(windows) // count : (i + 1) * len(windows) // count]
        most = max(names, key=[window["class"] for window in part].count)
        yield part[0]["start"], part[-1]["end"], names.index(most)


def named_maps(explanation):
    """(name, map, frames from and to which attention is largest) of the file and of the likeliest classes."""
    maps = [("this file", explanation["map"])]
    for each in explanation["signatures"]:
        maps.append((f"{each['class']}, distance {each['distance']:.2f}", each["map"]))
    for name, values in maps:
        yield name, values, *np.unravel_index(np.argmax(values), np.shape(values))


def template(name, *helpers):
    """The template of that name beside this file, which may call the helpers; what cannot be seen is spelled out.

    Raises InputError where Jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise InputError(f"{name} is written by Jinja2, which is not installed: pip install jinja2") from error
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    blocks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    escaped = {"autoescape": name.endswith("html"), "finalize": visible, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=loader, **blocks, **escaped)
    environment.globals |= {helper.__name__: helper for helper in helpers}
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template(name)


def visible(value):
    return value if hasattr(value, "__html__") else printable(str(value))  # markup is text that a macro made
