"""The loss grid: which rate is best, what is said of a cell, and what follows from the cells in words."""

from types import SimpleNamespace

import pytest
from scipy.stats import ttest_rel

from experiments import loss_grid

CHANCE = 0.05


def cell(stages, loss, rate, *macro, val=0.5):
    """Of seeds with these macro accuracies, None where mining collapsed."""
    seeds = [
        {"seed": i, "micro": own, "macro": own, "uniform": CHANCE, "majority": 0.25, "videos": 320}
        for i, own in enumerate(macro)
        if own is not None
    ]
    by_seed = {"val": [own and [val, -1.0] for own in macro], "steps_by_seed": [own and [400, 900] for own in macro]}
    facts = {"stages": stages, "loss": loss, "rate": rate, "budget": {"train": 280, "val": 20}}
    return facts | by_seed | {"seeds": seeds, "collapsed": macro.count(None)}


def grid(mined):
    """A grid whose CE is at .40, .42, .41 and best at 1e-4; `mined` are the macro accuracies of CE+HNM at 3e-5."""
    cells = []
    for stages in (1, 2):
        for rate in loss_grid.RATES:
            cells.append(cell(stages, "CE", rate, 0.40, 0.42, 0.41, val=0.6 if rate == 1e-4 else 0.5))
            cells.append(cell(stages, "CE+semi-HNM", rate, *[None] * 3))
            own = mined if rate == 3e-5 else (0.06, None, 0.05)
            cells.append(cell(stages, "CE+HNM", rate, *own))
    return cells


def test_an_interval_over_pairs_is_that_of_scipy():
    cells = grid((0.50, 0.53, 0.50))
    pairs = ttest_rel([0.50, 0.53, 0.50], [0.40, 0.42, 0.41]).confidence_interval(0.95)
    mined = next(own for own in cells if own["loss"] == "CE+HNM" and own["rate"] == 3e-5)
    difference, verdict = loss_grid.comparison(mined, loss_grid.same_rate(cells, mined))
    assert difference == f"+10.0 ({100 * pairs.low:+.1f} to {100 * pairs.high:+.1f})" and verdict == "ahead"


@pytest.mark.parametrize(
    ("mined", "wanted"),
    [
        ((0.50, 0.53, 0.50), "ahead of cross-entropy CE+HNM in one stage, CE+HNM in two stages; behind it none."),
        ((0.40, 0.43, 0.40), "It is not shown that hard negatives help or harm here"),
        (
            (0.30, 0.33, 0.30),
            "ahead of cross-entropy none; behind it CE+HNM in one stage",
        ),
    ],
)
def test_the_verdict_follows_from_the_numbers(mined, wanted):
    verdict, _, *lines = loss_grid.answer(grid(mined))
    assert wanted in verdict
    hnm = next(line for line in lines if line.startswith("- CE+HNM in two stages"))
    assert "all seeds train at 3e-5, some collapse at 1e-5 1e-4 3e-4." in hnm and "At 3e-5 its macro" in hnm
    semi = next(line for line in lines if line.startswith("- CE+semi-HNM in one stage"))
    assert "some collapse at 1e-5 3e-5 1e-4 3e-4." in semi
    assert "collapsed in 14" in lines[-1] and lines[-1].endswith("of 16 cells.")


def test_what_became_of_a_cell():
    assert loss_grid.outcome(cell(1, "CE", 1e-5, 0.4, 0.5)) == "trained"
    assert loss_grid.outcome(cell(1, "CE+HNM", 1e-5, 0.4, 0.09, None)) == "1 of 3 collapsed, 1 of 3 untrained"


def test_every_cell_is_a_row_of_the_table():
    cells = grid((0.5, 0.5, 0.5))
    about = {"data": "zoo", "simulated": True, "folds": 1, "labels_few": 15}
    lines = [line for line in loss_grid.render_grid({"about": about, "cells": cells}) if line.startswith("|")]
    assert len(lines) == 2 + len(cells) and len({line.count("|") for line in lines}) == 1
    assert sum("(best)" in line for line in lines) == 6


def test_the_best_rate_by_val_has_more_seeds(monkeypatch):
    def measure(args, data, stages, loss, rate):
        test, val = (0.9, 0.3) if rate == 3e-4 else (0.4, 0.8 if rate == 3e-5 else 0.2)
        collapsed = [None] * (rate == 1e-4)
        return cell(stages, loss, rate, *[test] * (args.seeds - len(collapsed)), *collapsed, val=val)

    monkeypatch.setattr(loss_grid, "measure_cell", measure)
    monkeypatch.setattr(loss_grid, "described", lambda data, **results: results)
    for seeds, few in ((1, 1), (3, 3), (5, 3)):
        cells = loss_grid.measure_grid(SimpleNamespace(seeds=seeds), None)["cells"]
        counts = {(own["rate"], len(own["seeds"]) + own["collapsed"]) for own in cells}
        assert counts == {(rate, seeds if rate == 3e-5 else few) for rate in loss_grid.RATES} and len(cells) == 24


def test_a_rate_is_chosen_by_val_over_the_seeds_of_all_where_a_collapse_is_nothing_right():
    cells = [cell(1, "CE+HNM", 1e-5, 0.5, 0.5, 0.5, val=0.4), cell(1, "CE+HNM", 1e-4, 0.9, None, val=0.7)]
    assert loss_grid.best_cells(cells)[1, "CE+HNM"]["rate"] == 1e-5
    cells = [cell(1, "CE+HNM", 1e-5, None, None), cell(1, "CE+HNM", 1e-4, 0.05, None, val=0.01)]
    assert loss_grid.best_cells(cells)[1, "CE+HNM"]["rate"] == 1e-4
