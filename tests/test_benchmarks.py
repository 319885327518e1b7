"""The benchmarks' table: rows, merging, resuming, rendering, a side's process. Nothing here needs their packages."""

import ast
import importlib
import sys
from types import SimpleNamespace

import pytest

from basics.artifacts import read_json
from basics.running import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench  # noqa: E402  (the folder of benchmarks is on the path first)
from measuring import SideError, alternated, compared, side, skipped  # noqa: E402

FAST, SLOW = {"seconds": 1.0, "memory": 2.0}, {"seconds": 3.0, "memory": 1.0}


def test_ratio_is_above_one_where_ours_is_ahead():
    row = compared("tokens", "PyTorch", FAST, SLOW)
    assert (row["ratio"], row["met"], row["ours_memory"], row["theirs_memory"]) == (3.0, True, 2.0, 1.0)
    assert compared("tokens", "PyTorch", SLOW, FAST)["met"] is False
    rates = compared("disk", "np.load", {"rate": 8.0}, {"rate": 4.0}, key="rate", higher=True)
    assert (rates["ratio"], rates["met"]) == (2.0, True)
    assert compared("tokens", "ours in float32", FAST, SLOW, aim=None)["met"] is None


def test_a_side_that_failed_is_a_row_with_the_reason():
    row = compared("decode", "decord", FAST, SideError("No module named 'decord'"))
    assert (row["ours"], row["theirs"], row["ratio"], row["met"]) == (1.0, None, None, None)
    assert row["note"] == "theirs: No module named 'decord'"
    assert "No module named 'decord'" in bench.render({"decode": case([row])})


def test_rounds_alternate_and_give_medians():
    order, values = [], iter([1.0, 10.0, 5.0, 20.0, 2.0, 90.0])

    def measure(name):
        order.append(name)
        return {"seconds": next(values), "memory": float(len(order))}

    found = alternated(3, a=lambda: measure("a"), b=lambda: measure("b"))
    assert order == ["a", "b"] * 3
    assert found == {"a": {"seconds": 2.0, "memory": 5.0}, "b": {"seconds": 20.0, "memory": 6.0}}


def test_a_side_runs_in_its_own_process_and_reports_its_memory(tmp_path):
    file = tmp_path / "sides.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from measuring import run_side\n"
        "def hold(size):\n    held = bytearray(b'x') * size; print('noise'); return {'seconds': float(len(held))}\n"
        "def fail():\n    raise ValueError('no such thing')\n"
        "def wait():\n    import time; time.sleep(20)\n"
        "run_side(globals())\n"
    )
    small, large = side(file, "hold", size=1), side(file, "hold", size=200 << 20)
    assert large["seconds"] == 200 << 20
    assert 0.15 < large["memory"] - small["memory"] < 0.25
    with pytest.raises(SideError, match="no such thing"):
        side(file, "fail")
    with pytest.raises(SideError, match="not done in 0.5 s"):
        side(file, "wait", limit=0.5)


def case(rows, cpu="a CPU"):
    where = {
        "cpu": cpu,
        "cores": 2,
        "memory_gib": 24.0,
        "system": "Linux",
        "python": "3.11",
        "versions": {"keras": "3"},
    }
    return {"rows": rows, "machine": where, "command": "bench.py", "date": "2026-01-01", "seconds": 5.0}


def test_a_case_run_again_replaces_its_rows_and_leaves_the_others():
    how = {key: value for key, value in case([]).items() if key != "rows"}
    found = bench.merge({}, "step float32", [compared("step", "PyTorch", FAST, SLOW)], **how)
    found = bench.merge(found, "decode", [compared("decode", "PyAV", FAST, SLOW)], **how)
    found = bench.merge(found, "decode", [compared("decode", "PyAV", SLOW, FAST)], **how)
    assert list(found) == ["decode", "step float32"]
    assert found["decode"]["rows"][0]["met"] is False
    assert found["step float32"]["rows"][0]["met"] is True


def test_the_table_says_what_was_met_and_on_which_machine():
    cases = {
        "decode": case([compared("frames", "PyAV", FAST, SLOW)]),
        "step": case([compared("step", "PyTorch", SLOW, FAST)], cpu="another CPU"),
        "corpus": case([skipped("real clips", "no clips.csv")]),
    }
    first, second = bench.render(cases).split("another CPU")
    assert "| frames | PyAV | 1 s | 3 s | 3 | 1 met | 2 / 1 |  |" in first
    assert "| real clips |  |  |  |  |  |  | no clips.csv |" in first
    assert "| step | PyTorch | 3 s | 1 s | 0.333 | 1 **not met** | 1 / 2 |  |" in second


def test_rows_are_written_after_each_case_and_kept_by_resume(tmp_path, monkeypatch):
    measured = []

    def measure(name):
        measured.append(name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return [compared(name, "PyAV", FAST, SLOW)]

    cases = [(name, lambda name=name: measure(name)) for name in ("one", "two")]
    monkeypatch.setitem(sys.modules, "bench_decode", SimpleNamespace(cases=lambda args: cases))
    flags = ["decode", "--out", str(tmp_path / "table")]
    with pytest.raises(KeyboardInterrupt):
        bench.main(flags)
    assert list(read_json(tmp_path / "table.json")) == ["decode one"]
    bench.main([*flags, "--resume"])
    assert measured == ["one", "two", "two"]
    assert list(read_json(tmp_path / "table.json")) == ["decode one", "decode two"]
    assert "| two | PyAV |" in (tmp_path / "table.md").read_text()


def test_the_cases_after_one_that_cannot_be_prepared_are_measured(tmp_path, monkeypatch):
    def fail():
        raise SideError("no disk left")

    cases = [("one", fail), ("two", lambda: [compared("two", "PyAV", FAST, SLOW)])]
    monkeypatch.setitem(sys.modules, "bench_decode", SimpleNamespace(cases=lambda args: cases))
    bench.main(["decode", "--out", str(tmp_path / "table")])
    found = read_json(tmp_path / "table.json")
    assert [found[name]["rows"][0]["note"] for name in found] == ["no disk left", ""]


def test_every_benchmark_has_a_file_and_a_line_in_the_list():
    files = {file.stem.removeprefix("bench_") for file in (ROOT / "benchmarks").glob("bench_*.py")}
    assert files == set(bench.BENCHMARKS)


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_what_a_benchmark_imports_of_this_repository_is_there(file):
    rooms = {folder.name for folder in ROOT.iterdir() if folder.is_dir()} | {"common"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in rooms:
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
