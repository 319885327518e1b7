"""The tables of README.md and docs/, made from results/: between `<!-- results/NAME.md -->` and `<!-- end -->` stands
that file.

reads   results/**/*.json of the papers' tables and figures
writes  the .md beside each; results/summary.md, four levels beside the paper; README.md, docs/
"""

import re

from basics.artifacts import read_json
from basics.running import ROOT
from experiments.paper import PAPER_TABLES, arm_values, printed
from experiments.registry import ENTRIES
from experiments.stages import markdown
from experiments.tables import LEVEL_ARMS, mean_std
from tokens.generators import level_name


def write_readme(args=None):
    """Render all results again and fill README.md and docs/ with them."""
    for path in sorted((ROOT / "results").rglob("*.json")):
        results = read_json(path)
        if path.stem in ENTRIES and "provenance" in results:  # others are older, and left as they are
            lines = ENTRIES[path.stem].render(results)
            path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    summary = summarize(ROOT / "results")
    (ROOT / "results" / "summary.md").write_text("\n".join(summary) + "\n", encoding="utf-8")
    for page in pages():
        page.write_text(fill(page.read_text(encoding="utf-8"), ROOT), encoding="utf-8")


def pages():
    """README.md and what it leads on to."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(text, root):
    """The text with every marked place holding its file's lines as they are now."""

    def table(match):
        return f"<!-- {match[1]} -->\n{(root / match[1]).read_text(encoding='utf-8')}<!-- end -->"

    return re.sub(r"<!-- (results/\S+) -->\n.*?<!-- end -->", table, text, flags=re.S)


def summarize(folder) -> list[str]:
    """A row per level and setting: micro / macro, chance, and the paper's Overall."""
    rows = []
    for level, table in PAPER_TABLES.items():
        path = folder / f"table-{table.split()[0]}.json"
        arms = read_json(path)["arms"] if path.exists() else {}
        for arm in [arm for arm in LEVEL_ARMS[level] if str(arm) in arms]:
            seeds = arms[str(arm)]["seeds"]
            cell = " / ".join(mean_std([seed[key] for seed in seeds]) for key in ("micro", "macro"))
            rows.append([level_name(level), str(arm), cell, printed(arm_values(arm, level).get("Overall"))])
        if first := next((result["seeds"][0] for result in arms.values() if result["seeds"]), None):
            chance = f"{100 * first['majority']:.1f} / {100 * first['uniform']:.1f}"
            rows.append([level_name(level), "chance", chance, ""])
    return markdown(["level", "setting", "zoo, micro / macro", "the paper's Overall"], rows)
