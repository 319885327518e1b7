"""A report as text for a terminal, and the template of an HTML page that needs nothing else.

    print(text_report(report))

Whatever comes from a file, its name first of all, is escaped for both.
"""

import base64
from pathlib import Path

import numpy as np

from basics.running import InputError, printable
from tokens.generators import level_name

# ---------------------------------------------------------------- words


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


# ---------------------------------------------------------------- HTML, and other templates

CELLS = 100  # of a strip over time, at most


def page_template():
    """The page, which wants `reports`."""
    helpers = (shown, runners_up, answer_of, media_line, summed_line, accuracy_line, disagreements, unknown_line)
    helpers += (run_line, answer_line, vote_cells, named_maps, level_name)
    return template("page.html", *helpers)


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
    return value if hasattr(value, "__html__") else printable(value)  # markup is text that a macro made
