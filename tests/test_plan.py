"""What GenVideo costs is computed from measured rates, and the tables say what the files of results/ hold."""

import json
import math
import sys

import numpy as np
import pytest

from common import HERE, load_generators

sys.path.insert(0, str(HERE / "benchmarks"))
import index_scale
import int8
import plan

RATES = {"decode": 800, "encode": 80, "read": 1e9, "write": 2e8, "step": 10, "pooled step": 50}


def test_clips_counted_are_those_of_other_generators():
    assert set(plan.GENVIDEO) - {"Kinetics-400", "Youku-mPLUG"} == set(load_generators()) - {"Real"}
    assert sum(count for count, _ in plan.GENVIDEO.values()) == 2_302_256  # Table S-1, Real's 1,213,511 included
    assert plan.windows_of({"a": (10, 2.5), "b": (1, 0.4)}) == 31
    assert plan.windows_of({"a": (10, 2.5), "b": (1, 0.4)}, 1) == 11


def test_plan_differs_from_a_count_by_hand():
    found = plan.plan(RATES, 3600, apart=True)
    size = 3600 * 8 * 729 * 1152 * 2
    assert found["full cache"]["bytes"] == size and found["`--pool 3` cache"]["bytes"] == size / 9
    assert found["int8 cache"]["bytes"] == size // 2 + 2 * 3600 * 8 * 729
    assert found["full cache"]["make"] == pytest.approx(0.1)  # 8 frames a window, 80 a second: the encoder decides
    assert found["full cache"]["train"] == pytest.approx(10 * 0.1)  # 10 windows a second; the disk would allow 74
    assert found["streaming"] == {"bytes": 0, "make": 0, "train": pytest.approx(10 * (0.1 + 0.1))}
    shared = plan.plan(RATES, 3600, apart=False)
    assert shared["full cache"]["make"] == pytest.approx(0.1 + 0.01)
    assert shared["streaming"]["train"] == pytest.approx(10 * (0.1 + 0.1 + 0.01))
    slow = plan.plan(RATES | {"read": 1e6, "write": 1e6}, 3600, apart=True)
    assert slow["full cache"]["make"] == pytest.approx(size / 1e6 / 3600)
    assert slow["full cache"]["train"] == pytest.approx(10 * size / 1e6 / 3600)


def test_rates_given_by_flag_are_measured_or_other_machines_forgotten(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    monkeypatch.setattr(
        plan, "write_tables", lambda: plan.render(json.loads((tmp_path / "results/plan.json").read_text()))
    )
    flags = [f"--{rate.replace(' ', '-')}-rate={value}" for rate, value in RATES.items()]
    plan.main([*flags, "--machine", "one"])
    plan.main([*flags, "--machine", "other", "--shared"])
    printed = capsys.readouterr().out
    assert "| one | full cache |" in printed and "| other | streaming |" in printed and "int8" not in printed
    found = json.loads((tmp_path / "results/plan.json").read_text())["machines"]
    assert found["one"] == {"rates": RATES, "apart": True, "how": "given"} and not found["other"]["apart"]


def test_tokens_rounded_to_int8_are_further_off_than_half_a_step():
    tokens = np.random.default_rng(0).normal(size=(5, 3, 40)) * np.array([1e-3, 1, 100])[:, None]
    steps = np.abs(tokens).max(axis=-1, keepdims=True) / 127
    assert (np.abs(int8.rounded(tokens) - tokens) <= 0.6 * steps + 2.0**-15).all()
    assert (int8.rounded(np.zeros((2, 4))) == 0).all()


def test_int8_is_called_harmless_where_it_harms():
    same = {"float16": {"SAGA": [0.5, 0.52, 0.54]}, "int8": {"SAGA": [0.51, 0.52, 0.53]}}
    worse = same | {"int8": {"SAGA": [0.40, 0.43, 0.44]}}
    assert int8.harmless(same) and not int8.harmless(worse)


@pytest.mark.parametrize("name", ["plan", "int8", "index_scale"])
def test_table_in_results_differs_from_what_was_measured(name):
    path = HERE / "results" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{name} was not measured")
    results = json.loads(path.read_text(encoding="utf-8"))
    word = [plan.int8_word(HERE / "results" / "int8.json")] if name == "plan" else []
    lines = {"plan": plan, "int8": int8, "index_scale": index_scale}[name].render(results, *word)
    assert path.with_suffix(".md").read_text(encoding="utf-8").splitlines() == lines


def test_numbers_are_printed_with_digits_that_are_not_known():
    assert [plan.number(value) for value in (0.123, 4.56, 12345.6, 0)] == ["0.12", "4.6", "12,346", "0"]
    assert math.isclose(plan.windows_of(plan.GENVIDEO, 1), 2_302_256)
