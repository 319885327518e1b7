"""Do hard negatives help? The paper's own loss setting at GEN-L on few labels (Sec. 3.2, S-2), over a grid of rates.

reads   a features folder (datasets.py); trains what is not up to date (stages.py)
writes  results/loss-grid.json, .md: by loss, rate and number of stages whether mining collapses, whether it trains, and
        its accuracy less that of cross-entropy (CE) over seeds; and what follows from these numbers, in words

The paper's: raw embeddings, margin 1, lambda 0.5, natural batches, a rate that halves every 1,000 steps. Ours: batches
of 32 instead of 64, which would take twice as long, and 4,000 steps or until val cross-entropy has not fallen for 500.
Two stages start from the stage 1 of all other tables, so losses and rates differ in stage 2 alone.

In pieces of an hour: --seeds 1, --seeds 2, --seeds 3, then without; each keeps what the one before has trained.
"""

import argparse

import numpy as np

from experiments.ablations import ablation_verdict, less_ce, signed, untrained
from experiments.stages import LOSS_FLAGS, PAPER, PAPER_MINING, Arm, markdown, spent
from experiments.tables import OVERALL, arm_runs, caption, described, mean_std, overall_cells, scored, val_scores

RATES = (1e-5, 3e-5, 1e-4, 3e-4)
SETTING = {key: own for key, own in PAPER.items() if key != "temporal_blocks"}  # those are stage 1's
SETTING |= {"batch_size": 32, "steps": 4000, "epochs": 40, "patience": 5, "dropout": 0.1, "head": "linear"}
SEEDS = 3  # of every cell; the best rate of each loss has all of --seeds, five
STAGES = {1: "one stage", 2: "two stages"}
CE, *MINED = LOSS_FLAGS
COLLAPSED = [0.0, np.log(1e-12)]  # in place of val_score

# ---------------------------------------------------------------- measuring


def measure_grid(args, data):
    """A cell per number of stages, loss and rate, of at most SEEDS seeds; the best rate of each loss has --seeds."""
    few = argparse.Namespace(**vars(args) | {"seeds": min(args.seeds, SEEDS)})
    cells = [measure_cell(few, data, stages, loss, rate) for stages in STAGES for loss in LOSS_FLAGS for rate in RATES]
    if args.seeds > SEEDS:
        for i in [cells.index(cell) for cell in best_cells(cells).values()]:
            cells[i] = measure_cell(args, data, *(cells[i][key] for key in ("stages", "loss", "rate")))
    return described(data, cells=cells)


def measure_cell(args, data, stages, loss, rate):
    """`scored`, and by seed, None where mining collapsed, what val says and how many steps each stage took."""
    mining = {} if loss == CE else {key: own for key, own in PAPER_MINING.items() if key != "loss"}
    runs = arm_runs(args, data, Arm(stages, "few", loss), "gen", last=SETTING | mining | {"learning_rate": rate})
    by_seed = {"val": [run and val_score(run) for [run] in runs]}
    by_seed["steps_by_seed"] = [run and spent(run, "gen")["steps"] for [run] in runs]
    return {"stages": stages, "loss": loss, "rate": rate} | by_seed | scored(runs, "gen")


def val_score(run):
    """What the epoch was chosen by: macro accuracy on val, and less its cross-entropy."""
    found = val_scores(run, "gen")
    return [found["macro_accuracy"], -found["cross_entropy"]]


def best_cells(cells):
    """{(stages, loss): the cell whose rate is best on val}, over the seeds that all cells have. A collapsed seed names
    no clip correctly.
    """
    seeds, best = min(len(cell["val"]) for cell in cells), {}
    for cell in cells:
        found = tuple(np.mean([own or COLLAPSED for own in cell["val"][:seeds]], axis=0))
        key = cell["stages"], cell["loss"]
        if key not in best or found > best[key][0]:
            best[key] = found, cell
    return {key: cell for key, (_, cell) in best.items()}


# ---------------------------------------------------------------- the table


def render_grid(results):
    cells, rows = results["cells"], []
    best = [(cell["stages"], cell["loss"], cell["rate"]) for cell in best_cells(cells).values()]
    for cell in cells:
        stages, loss, rate = (cell[key] for key in ("stages", "loss", "rate"))
        row = [STAGES[stages], loss, rate_text(rate) + " (best)" * ((stages, loss, rate) in best)]
        row.append(mean_std([val[0] for val in cell["val"] if val]))
        rows.append([*row, *overall_cells(mean_steps(cell)), outcome(cell), *comparison(cell, same_rate(cells, cell))])
    header = ["stages", "loss", "rate", "val macro", *OVERALL, "outcome", "less CE at this rate, macro", "verdict"]
    what = "Do hard negatives help? GEN-L, few labels; raw embeddings, margin 1, lambda 0.5 as in the paper"
    return [caption(results, what), "", *markdown(header, rows), "", *answer(cells), "", NOTE]


def mean_steps(cell):
    """The cell with the mean steps of each stage over seeds, in place of the first seed's: patience ends runs early."""
    steps = [own for own in cell["steps_by_seed"] if own]
    return cell | ({"steps": np.mean(steps, axis=0).round().astype(int).tolist()} if steps else {})


NOTE = (
    "Trained: macro accuracy of at least twice chance. Val has a label or two of each class, which count; by it the"
    " epoch and the best rate of a loss are chosen, and training stops by its cross-entropy whatever the loss."
    " Departures from the paper: batches of 32, two temporal blocks, and a stage 1 with `--preset small`."
    " Steps are of all stages, means over seeds. Brackets after differences: 95% t interval over pairs of one seed;"
    " ahead or behind where it leaves out 0, else open. Each verdict stands alone: of twenty open ones chance calls one"
    " ahead or behind."
)


def rate_text(rate):
    return f"{rate:.0e}".replace("e-0", "e-")


def outcome(cell):
    """What became of a cell's runs, in words."""
    seeds, collapsed = len(cell["seeds"]) + cell["collapsed"], cell["collapsed"]
    failed = untrained(cell) - collapsed
    parts = [f"{count} of {seeds} {what}" for count, what in ((collapsed, "collapsed"), (failed, "untrained")) if count]
    return ", ".join(parts) or "trained"


def same_rate(cells, cell):
    """The cell of CE that a cell is compared with."""
    wanted = {"stages": cell["stages"], "loss": CE, "rate": cell["rate"]}
    return next(own for own in cells if own.items() >= wanted.items())


def comparison(cell, plain):
    """Macro accuracy less that of CE, and what can be said of it."""
    if cell["loss"] == CE:
        return ["", ""]
    row = less_ce(plain, cell)
    return [signed(row["macro"]), ablation_verdict(row)]


# ---------------------------------------------------------------- the answer, from the numbers


def answer(cells) -> list[str]:
    """What the grid says, in sentences."""
    best, lines, found = best_cells(cells), [], {"ahead": [], "behind": [], "open": []}
    for stages, words in STAGES.items():
        for loss in MINED:
            cell, plain = best[stages, loss], best[stages, CE]
            difference, verdict = comparison(cell, plain)
            found.setdefault(verdict.split()[0], []).append(f"{loss} in {words}")
            own = [other for other in cells if (other["stages"], other["loss"]) == (stages, loss)]
            lines.append(f"- {loss} in {words}: {trained_text(own)} {best_text(cell, plain, difference, verdict)}")
    same = [comparison(cell, same_rate(cells, cell))[1].split()[0] for cell in cells if cell["loss"] != CE]
    counts = [f"{word} in {same.count(word)}" for word in dict.fromkeys(("ahead", "behind", "open", *same))]
    lines.append(f"- At equal rates mining is {', '.join(counts)} of {len(same)} cells.")
    if found["ahead"]:
        verdict = "Hard negatives help here."
    elif found["behind"]:
        verdict = "Hard negatives do not help here."
    else:
        verdict = "It is not shown that hard negatives help or harm here."
    ahead, behind = (", ".join(found[word]) or "none" for word in ("ahead", "behind"))
    return [f"{verdict} Each loss at its best rate: ahead of cross-entropy {ahead}; behind it {behind}.", "", *lines]


def trained_text(cells):
    rates = {"all seeds train at": [], "some collapse at": [], "some stay untrained at": []}
    for cell in cells:
        if cell["collapsed"]:
            rates["some collapse at"].append(rate_text(cell["rate"]))
        elif untrained(cell):
            rates["some stay untrained at"].append(rate_text(cell["rate"]))
        else:
            rates["all seeds train at"].append(rate_text(cell["rate"]))
    text = ", ".join(f"{what} {' '.join(own)}" for what, own in rates.items() if own)
    return f"{text}."


def best_text(cell, plain, difference, verdict):
    ours, theirs = (mean_std([seed["macro"] for seed in own["seeds"]]) for own in (cell, plain))
    rates = [rate_text(own["rate"]) for own in (cell, plain)]
    return f"At {rates[0]} its macro accuracy is {ours}, CE's at {rates[1]} {theirs}: {difference}, {verdict}."
