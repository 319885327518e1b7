"""The demo and the walk through the stages: which folders they fill, and what is shown of a file. `make check` runs
both.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from stages import module

import reproduce
from basics.artifacts import write_arrays, write_json
from experiments import demo, steps
from tokens.generators import LEVELS


@pytest.fixture
def made(tmp_path, monkeypatch):
    """What the demo made where, by stages that only pretend: (folder, overwrite) by what."""
    monkeypatch.chdir(tmp_path)
    made = {}

    def stage(name, *flags, overwrite):
        made[name] = dict(zip(flags[::2], flags[1::2], strict=True)).get("--features"), overwrite
        return {"written": 1, "videos": 1}

    def train(level, features, run, settings, overwrite):
        made[level] = run, overwrite
        assert features == made["01_extract_features"][0]
        run.mkdir(parents=True, exist_ok=True)
        for ending in (".keras", ".json", "_embeddings.npz"):
            (run / f"{level}{ending}").write_text(level)
        return {"level": level}

    monkeypatch.setattr(demo, "stage", stage)
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo, "level_results", lambda metrics, features: {})
    monkeypatch.setattr(demo, "make_data", lambda *_: None)
    monkeypatch.setattr(demo, "write_results", lambda args, *_: made.update(results=(args.results, False)))
    return made


def test_demo_fills_the_folders_where_the_stages_look(made, capsys):
    defaults = module("03_attribute").get_args(["--level", "team"])
    reproduce.main(["demo"])
    assert str(made["01_extract_features"][0]) == defaults.features
    assert Path(defaults.run) == made["bin"][0] and (Path(defaults.run) / "bin.keras").exists()
    assert not list(Path(defaults.run).glob("team*"))  # else the paper's settings would be refused there
    for level in LEVELS:
        assert (Path("runs/demo") / f"{level}.keras").read_text() == level
    assert "python 03_attribute.py --level team" in capsys.readouterr().out
    assert not any(overwrite for _, overwrite in made.values())
    assert made["results"][0] == Path("runs/demo")  # not in results/, whose numbers are those of the README


@pytest.mark.parametrize("flags", [["--limit", "6"], ["--run", "runs/mine"], ["--features", "features/mine"]])
def test_a_demo_with_flags_leaves_those_folders_alone(made, flags):
    reproduce.main(["demo", *flags, "--overwrite"])
    assert len({made[level][0] for level in LEVELS}) == 1 and not Path("runs/zoo").exists()
    assert made["bin"][0] != Path("runs/demo") or "--features" in flags
    assert (made["01_extract_features"][0] == Path("features/zoo")) == ("--run" in flags)
    made.pop("results")
    assert all(overwrite for _, overwrite in made.values())


def test_the_demos_table_shows_saga_beside_two_probes_and_chance(monkeypatch):
    monkeypatch.setattr(demo, "settings_line", lambda results: "settings")
    own = {"accuracy": 0.5, "macro_accuracy": 0.25, "accuracy_interval": [0.4, 0.6], "videos": 8}
    level = own | {"majority": 0.75, "uniform": 0.125, "classes": ["a", "b"], "seconds": 7.4}
    level |= {"linear": own | {"accuracy": 0.3}, "temporal": own | {"macro_accuracy": 0.9}}
    row = demo.render_demo({"levels": {"gen": level}})[4]
    assert row == "| GEN-L | 2 | 8 | 0.75 / 0.12 | 0.50 (0.40-0.60) / 0.25 | 0.30 / 0.25 | 0.50 / 0.90 | 7 |"


def test_steps_run_the_five_stages_in_folders_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = []

    def stage(name, *flags, overwrite):
        asked.append(module(name).get_args([str(flag) for flag in flags]))
        write_arrays(
            f"runs/steps/{['none', 'bin', 'team', 'team_tsigs', 'wild'][len(asked) % 5]}.npz", {"a": np.eye(3)}
        )

    monkeypatch.setattr(steps, "stage", stage)
    reproduce.main(["steps"])
    printed = capsys.readouterr().out.splitlines()
    commands = [line.split()[2] for line in printed if line.startswith("$")]
    numbered = sorted(path.name for path in Path(reproduce.__file__).parent.glob("0[1-5]_*.py"))
    assert commands == ["simulate_videos.py", *numbered]
    for args in asked:
        for key in ("out", "videos", "features", "run"):
            assert "steps" in str(getattr(args, key, "steps"))
    assert "    a                float64 (3, 3)" in printed


def test_a_file_is_described_by_its_keys(tmp_path):
    write_arrays(tmp_path / "a.npz", {"maps": np.zeros((2, 8, 8), "float32"), "recipe": {"x": 1}})
    write_json(tmp_path / "a.json", {"level": "gen", "classes": []})
    (tmp_path / "a.csv").write_text("path,split\nx,test\n")
    (tmp_path / "a.png").touch()
    described = {path.suffix: steps.describe_file(path) for path in tmp_path.iterdir()}
    assert described[".npz"][1] == "    maps             float32 (2, 8, 8)"
    assert described[".json"] == [f"{tmp_path}/a.json", "    level, classes"]
    assert described[".csv"] == [f"{tmp_path}/a.csv", "    path,split"]
    assert described[".png"] == [f"{tmp_path}/a.png"]


def test_parameters_of_a_model_are_counted(tmp_path):
    from common import build_saga

    model = build_saga(2, frames=8, tokens=2, dim=12, temporal_blocks=2)
    model.save(tmp_path / "bin.keras")
    wanted = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert steps.describe_file(tmp_path / "bin.keras")[1] == f"    {wanted:,} parameters"


def test_a_flag_means_the_same_everywhere():
    meanings = {"--limit": "clips (per|of each) generator", "--batch-size": "windows", "--encoder-batch": "frames"}
    scripts = sorted(Path(reproduce.__file__).parent.glob("[0as]*.py"))
    assert len(scripts) == 7
    for path in (*scripts, Path(reproduce.__file__)):
        for flag, meaning in meanings.items():
            for line in re.findall(rf'add\("{flag}".*', path.read_text(encoding="utf-8")):
                assert re.search(meaning, line), f"{path.name}: {line}"
