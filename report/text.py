"""A report as text for a terminal, a line of JSON, a row of CSV, or a section of an HTML page that needs nothing else.

    print(text_report(report))
    with open_html("report.html") as write: write(report)         and open_json, open_csv, for any number of reports

Whatever comes from a file, its name first of all, is escaped for each of them.
"""

import base64
import contextlib
import csv
import html
import json
import sys
from pathlib import Path

from common import LEVELS, level_name
from tokens.dataset import replace_whole

# ---------------------------------------------------------------- words


def printable(text):
    """Text without what a terminal would act on."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(probability):
    """Two digits, and never certainty."""
    return "<0.01" if probability < 0.005 else ">0.99" if probability > 0.995 else f"{probability:.2f}"


def runners_up(own, count=2):
    return [(name, value) for name, value in own["probabilities"].items() if name != own["best"]][:count]


def answer_of(own):
    return own["answer"] if own["answer"] == own["best"] else f"{own['answer']} (nearest: {own['best']})"


def media_line(media):
    rate = f"{media['fps']:g} frames a second, {media['seconds']:g} s" if media["fps"] else "one frame"
    return f"{media['container']}, {media['codec']}, {media['size']}, {rate}; C2PA manifest {media['c2pa']}"


def summed_line(summed):
    best = f"{summed['best']} {shown(summed['probabilities'][summed['best']])}"
    left = f"not defined {shown(summed['not_defined'])}"
    if summed["agrees"] is None:
        return f"{left}, {best}"
    return f"{best}, {left}" if summed["not_defined"] >= 0.005 else best


def accuracy_line(measured):
    pairs = (("accuracy", "majority"), ("macro_accuracy", "uniform"))
    return " / ".join(f"{measured[own]:.2f} (chance {measured[chance]:.2f})" for own, chance in pairs)


def disagreements(report):
    """One sentence per level whose own model and the generator's sums differ, with what held-out clips say of it."""
    for level, own in report["levels"].items():
        summed = own["by_generator"]
        if not summed or summed["agrees"]:
            continue
        if summed["agrees"] is None:
            yield (
                f"{level_name(level)}: most of the generator's probability ({shown(summed['not_defined'])}) is on"
                f" generators that have no class here; its own model can only choose among those that have."
            )
            continue
        line = f"{level_name(level)}: its own model says {own['best']}, the generator's probabilities {summed['best']}."
        if found := summed["measured"]:
            line += (
                f" Of {found['clips']} test clips they differed on {found['differ']}; the level's own was right on"
                f" {found['own_right']}, the generator's on {found['generator_right']}:"
            )
            trust = {"own": "trust the level's own", "generator": "trust the generator's"}
            line += f" {trust.get(found['trust'], 'neither is measurably better')}."
        yield line


def unknown_line(unknown):
    said = "Yes, it is unlike all classes of the run, Real included" if unknown["unknown"] else "No"
    line = (
        f"Unknown generator? {said}: {unknown['score']} score {unknown['value']:.4g},"
        f" threshold {unknown['threshold']:.4g}, set to reject {unknown['rate']:.0%} of clips by known generators"
    )
    if test := unknown["test"]:
        line += f" (on test {test['rejected']} of {test['clips']})"
    if unknown["auroc"]:
        line += f"; AUROC {unknown['auroc']['value']:.2f} on generators it never saw (chance 0.50)"
    return f"{line}."


def nearest_line(nearest):
    clips = (f"{clip['video']} at {clip['seconds']:g} s ({clip['distance']:.3g})" for clip in nearest["clips"])
    usual = nearest["usual"]
    return f"{', '.join(clips)}; of {usual['split']} clips the nearest is at {usual['median']:.3g} (median)"


def run_line(run):
    features = run["features"]
    line = f"Run {run['name']}: encoder {features['encoder']}, {features['fps']} frames a second; trained and tested on"
    line += f" {run['data']}"
    if seen := run["trained_on"]:
        line += f", {seen['videos']} training clips"
    return f"{line}."


# ---------------------------------------------------------------- text


def text_report(report) -> str:
    if report["error"] is not None:
        return printable(f"{report['file']}: not answered: {report['error']}")
    windows = report["media"]["windows"]
    lines = [report["file"], f"  {media_line(report['media'])}; {windows} window{'s' * (windows != 1)}"]
    table = [("level", "answer", "p", "runners-up", "windows", "summed from GEN-L", "run's accuracy, micro / macro")]
    for level, own in report["levels"].items():
        votes = f"{own['votes'].get(own['best'], 0)} of {len(own['windows'])}"
        others = ", ".join(f"{name} {shown(value)}" for name, value in runners_up(own))
        summed = summed_line(own["by_generator"]) if own["by_generator"] else ""
        probability = shown(own["probabilities"][own["best"]])
        table.append((level_name(level), answer_of(own), probability, others, votes, summed))
        table[-1] += (accuracy_line(own["measured"]),)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines += ["  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
    lines += [f"  {reason}" for reason in report["evidence"]["reasons"]]
    lines += [f"  {line}" for line in disagreements(report)]
    if report["unknown"]:
        lines.append(f"  {unknown_line(report['unknown'])}")
    if report["nearest"]:
        lines.append(f"  Nearest training clips: {nearest_line(report['nearest'])}")
    lines.append(f"  {run_line(report['run'])}")
    lines += [f"  ! {warning}" for warning in report["warnings"]]
    return "\n".join(printable(line.rstrip()) for line in lines) + "\n"


# ---------------------------------------------------------------- JSON and CSV: written as the reports come


def answered(path) -> set[str]:
    """The files that a file of JSON lines answers; lines of errors and a last one cut short are dropped from it."""
    if not Path(path).exists():
        return set()
    kept, names = [], set()
    for line in Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        try:
            name, error = (json.loads(line)[key] for key in ("file", "error"))
        except (ValueError, TypeError, KeyError) as wrong:
            raise ValueError(f"{path} holds no reports of attribute_video.py; choose another --json") from wrong
        if error is None:
            kept.append(line)
            names.add(name)
    replace_whole(path, lambda file: file.write_text("".join(kept), encoding="utf-8"))
    return names


@contextlib.contextmanager
def open_json(path, add=False):
    """write(report): one line each, without the frames' pictures; `add` keeps what is there, "-" is standard output."""
    with contextlib.ExitStack() as stack:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        mode = "a" if add else "w"
        file = sys.stdout if path == "-" else stack.enter_context(open(path, mode, encoding="utf-8"))

        def write(report):
            if report["error"] is None:
                own = report["explanation"]["frames"]
                frames = [{key: frame[key] for key in frame if key != "image"} for frame in own]
                report = report | {"explanation": report["explanation"] | {"frames": frames}}
            file.write(json.dumps(report, allow_nan=False) + "\n")
            file.flush()

        yield write


@contextlib.contextmanager
def open_csv(path):
    """write(report): a row each. A cell that a spreadsheet would take for a formula gets a leading apostrophe."""
    columns = ["file", "sha256", "error", "container", "codec", "size", "fps", "seconds", "windows", "too_little"]
    for level in LEVELS:
        columns += [level, f"{level}_probability", f"{level}_summed"]
    columns += ["unknown", "unknown_score", "unknown_threshold", "warnings"]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()

        def write(report):
            row = {"file": report["file"], "error": report["error"] or ""}
            if report["error"] is None:
                row |= {key: value for key, value in report["media"].items() if key in columns}
                row["too_little"] = "; ".join(report["evidence"]["reasons"])
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


# ---------------------------------------------------------------- HTML


@contextlib.contextmanager
def open_html(path):
    """write(report): a section each; the page appears when all are there, or what there is after an interruption."""
    sections, overview = [], []
    replace_whole(path, Path.touch)  # while it costs nothing to learn that it cannot be written

    def write(report):
        number = len(sections) + 1
        sections.append(html_section(report, number))
        overview.append(overview_row(report, number))

    try:
        yield write
    finally:
        page = html_page(sections, overview)
        replace_whole(path, lambda file: file.write_text(page, encoding="utf-8"))


def e(value):
    """Escaped for HTML, text or attribute; what cannot be seen is spelled out."""
    return html.escape(printable(str(value)))


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --fill: #f3f5f7;
  --mark: #0b57d0; --warn: #8a4b00; --c0: #0b57d0; --c1: #b3460b; --c2: #1a7f37; --c3: #8250df; --c4: #6e7781; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1419; --ink: #e6edf3; --soft: #9da7b3; --line: #30363d;
  --fill: #1a2027; --mark: #79b8ff; --warn: #f0b072; --c0: #79b8ff; --c1: #ffa657; --c2: #56d364; --c3: #d2a8ff;
  --c4: #8b949e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 0; } h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
a { color: var(--mark); }
article { border-top: 3px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); }
th[scope="col"] { overflow-wrap: normal; } th[scope="row"] { min-width: 4.8rem; }
.verdict { font-size: 1.1rem; font-weight: 600; }
.soft, figcaption { color: var(--soft); font-size: .85rem; }
.warning { border-left: 4px solid var(--warn); background: var(--fill); padding: .4rem .75rem; margin: .5rem 0; }
.bar { display: block; height: .4rem; background: var(--line); }
.bar i { display: block; height: 100%; background: var(--mark); }
.maps, .frames { display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; margin: .5rem 0; list-style: none; }
figure { margin: 0; } .maps svg { width: 9rem; height: 9rem; background: var(--fill); }
.frames img { display: block; height: 6rem; width: auto; max-width: 100%; }
.votes { display: grid; grid-template-columns: 5rem 1fr; gap: .25rem .5rem; align-items: center; margin: .5rem 0; }
.votes svg { width: 100%; height: 1.1rem; }
.key span { margin-right: 1rem; white-space: nowrap; } .key b { display: inline-block; width: .8rem; height: .8rem; }
@media (max-width: 40rem) {
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  th, td { display: block; border: 0; padding: .1rem 0; }
  .maps svg { width: 6rem; height: 6rem; } .maps figure { width: 6rem; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #999; --fill: #eee; --mark: #003;
    --warn: #8a4b00; --c0: #0b57d0; --c1: #b3460b; --c2: #1a7f37; --c3: #8250df; --c4: #6e7781; }
  body { max-width: none; padding: 0; font-size: 10pt; } article { break-before: page; }
  article:first-of-type { break-before: auto; } h3 { break-after: avoid; }
  tr, figure, .warning { break-inside: avoid; } * { print-color-adjust: exact; }
}
"""


def html_page(sections, overview):
    table = html_table(f"{len(sections)} files", ("file", "answer"), overview) if len(sections) > 1 else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>What made this file?</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>What made this file?</h1></header>
<main>
{table}
{"".join(sections)}
</main>
</body>
</html>
"""


def overview_row(report, number):
    return f'<a href="#file-{number}">{e(report["file"])}</a>', [e(verdict(report))]


def verdict(report):
    """All levels' answers in one line."""
    if report["error"] is not None:
        return f"not answered: {report['error']}"
    if reasons := report["evidence"]["reasons"]:
        return f"too little evidence: {'; '.join(reasons)}"
    levels = report["levels"].values()
    sure = [f" {shown(own['probabilities'][own['best']])}" if own["answer"] == own["best"] else "" for own in levels]
    return ", ".join(f"{answer_of(own)}{probability}" for own, probability in zip(levels, sure, strict=True))


def html_section(report, number):
    parts = [f'<article id="file-{number}" aria-labelledby="name-{number}">']
    parts += [f'<h2 id="name-{number}">{e(report["file"])}</h2>', f'<p class="verdict">{e(verdict(report))}</p>']
    if report["error"] is None:
        parts += [f'<p class="soft">{e(media_line(report["media"]))}<br>SHA-256 {e(report["media"]["sha256"])}</p>']
        parts += [f'<p class="warning" role="note">{e(warning)}</p>' for warning in report["warnings"]]
        parts += [html_levels(report), html_votes(report), html_explanation(report), html_nearest(report)]
        parts += [
            "<h3>What this cannot know</h3><ul>",
            *(f"<li>{e(limit)}</li>" for limit in report["limits"]),
            "</ul>",
        ]
        parts += [f'<p class="soft">{e(run_line(report["run"]))}</p>']
    return "\n".join([*parts, "</article>\n"])


def html_table(caption, heads, rows):
    """A table of rows (name, cells already escaped); on a narrow screen each cell carries its head."""
    body = ""
    for name, cells in rows:
        cells = "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in zip(heads[1:], cells, strict=True))
        body += f'<tr><th scope="row">{name}</th>{cells}</tr>\n'
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"<table><caption>{e(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_levels(report):
    heads = ("level", "answer", "probability", "runners-up", "summed from GEN-L", "run's accuracy, micro / macro")
    rows = []
    for level, own in report["levels"].items():
        best = own["probabilities"][own["best"]]
        bar = f'<span class="bar" aria-hidden="true"><i style="width:{100 * best:.0f}%"></i></span>'
        others = ", ".join(f"{name} {shown(value)}" for name, value in runners_up(own, 3))
        summed = summed_line(own["by_generator"]) if own["by_generator"] else "-"
        uncalibrated = "" if own["calibrated"] else " (not calibrated)"
        cells = [e(answer_of(own)), f"{e(shown(best))}{uncalibrated}{bar}", e(others), e(summed)]
        measured = own["measured"]
        low, high = measured["accuracy_interval"]
        cells.append(
            e(f"{accuracy_line(measured)}; micro's 95% {low:.2f} to {high:.2f}, {measured['videos']} test clips")
        )
        rows.append((level_name(level), cells))
    table = html_table("Answers by level", heads, rows)
    notes = [*report["evidence"]["reasons"], *disagreements(report)]
    notes += [unknown_line(report["unknown"])] if report["unknown"] else []
    return table + "".join(f"<p>{e(note)}</p>" for note in notes)


CELLS = 100  # of a strip over time, at most


def html_votes(report):
    """How the windows voted over time, a strip of cells per level; a cell shows what most of its windows say."""
    rows = []
    for level, own in report["levels"].items():
        windows = own["windows"]
        names = sorted(own["votes"], key=lambda name: -own["votes"][name])
        colour = {name: f"var(--c{min(i, 4)})" for i, name in enumerate(names)}
        count, cells = min(len(windows), CELLS), []
        for i in range(count):
            part = windows[i * len(windows) // count : (i + 1) * len(windows) // count]
            most = max(names, key=[window["class"] for window in part].count)
            what = f"{part[0]['start']:g} to {part[-1]['end']:g} s: {most}"
            box = f'x="{i * 100 / count:.2f}" width="{100 / count - 0.2:.2f}" height="10" fill="{colour[most]}"'
            cells.append(f"<rect {box}><title>{e(what)}</title></rect>")
        said = ", ".join(f"{name} in {own['votes'][name]}" for name in names)
        label = f"{level_name(level)}, {len(windows)} windows over time: {said}"
        key = "".join(f'<span><b style="background:{colour[n]}"></b> {e(n)} {own["votes"][n]}</span>' for n in names)
        strip = f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{e(label)}">'
        rows.append(
            f'<b>{level_name(level)}</b><div>{strip}{"".join(cells)}</svg><div class="key soft">{key}</div></div>'
        )
    return f'<h3>How the windows voted over time</h3><div class="votes">{"".join(rows)}</div>'


def html_explanation(report):
    found = report["explanation"]
    parts = []
    if found["map"]:
        maps = [("this file", found["map"])]
        maps += [(f"{own['class']}, distance {own['distance']:.2f}", own["map"]) for own in found["signatures"]]
        low, high = (extreme(extreme(map(extreme, values)) for _, values in maps) for extreme in (min, max))
        frames = len(found["map"])
        parts.append(f"<h3>Attention between frames, {level_name(found['level'])}</h3>")
        parts.append("<p class=\"soft\">Rows attend, columns are attended to, from the paper's colour to the ink's:")
        parts.append(
            f"{frames * low:.2f} to {frames * high:.2f} times an even share. Beside the file the mean maps of the"
        )
        parts.append("two likeliest classes, their temporal attention signatures.</p>")
        parts += ['<div class="maps">', *(html_map(name, values, low, high) for name, values in maps), "</div>"]
    pictures = [frame for frame in found["frames"] if "image" in frame]
    if pictures:
        parts.append("<h3>Frames, and how much they are attended to</h3><ol class='frames'>")
        for frame in pictures:
            data = base64.b64encode(frame["image"]).decode()
            time = f"{frame['seconds']:.2f} s"
            image = f'<img src="data:image/jpeg;base64,{data}" alt="frame at {time}">'
            parts.append(
                f"<li><figure>{image}<figcaption>{time}, weight {frame['attention']:.2f}</figcaption></figure></li>"
            )
        parts.append('</ol><p class="soft">1 is an even share of its window\'s attention.</p>')
    return "\n".join(parts)


def html_map(name, values, low, high):
    size, span = len(values), max(high - low, 1e-9)
    row, column = max(((i, j) for i in range(size) for j in range(size)), key=lambda place: values[place[0]][place[1]])
    label = f"{name}: most attention from frame {row + 1} to frame {column + 1}, {values[row][column]:.2f}"
    cells = (
        f'<rect x="{j}" y="{i}" width="1" height="1" fill="var(--ink)" fill-opacity="{(value - low) / span:.2f}"/>'
        for i, attending in enumerate(values)
        for j, value in enumerate(attending)
    )
    picture = f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{e(label)}">{"".join(cells)}</svg>'
    return f"<figure>{picture}<figcaption>{e(name)}</figcaption></figure>"


def html_nearest(report):
    if not report["nearest"]:
        return ""
    heads = ("training clip", "class", "its time", "this file's time", "distance")
    rows = []
    for clip in report["nearest"]["clips"]:
        cells = [clip["class"], f"{clip['seconds']:g} s", f"{clip['own_seconds']:g} s", f"{clip['distance']:.3g}"]
        rows.append((e(clip["video"]), map(e, cells)))
    usual = report["nearest"]["usual"]
    caption = f"Of {usual['split']} clips the nearest training clip is at {usual['median']:.3g} (median)."
    return f"<h3>Nearest training clips</h3>{html_table(caption, heads, rows)}"
