"""The whole way from files to numbers: the README's commands, real clips of every format, and the controls that show
that the pipeline can also fail to find anything.
"""

import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
from stages import module, stage

from basics.running import ROOT
from experiments import readme
from experiments.probes import linear_probe
from experiments.stages import videos_of
from tokens.dataset import read_index, write_index
from tokens.generators import LEVELS
from training.evaluation import score

COMMANDS = [
    command
    for page in readme.pages()
    if page.name != "extend.md"  # whose commands run on edited code, in test_extend.py
    for command in re.findall(r"^(python \w+\.py.*)$", page.read_text(encoding="utf-8"), re.M)
]
CORPUS = ROOT.parent / "shared" / "corpus" / "clips"


def test_commands_of_the_readme_parse():
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        _, script, *arguments = shlex.split(command, comments=True)
        module(script.removesuffix(".py")).get_args(arguments)


@pytest.mark.skipif(not CORPUS.exists(), reason="no folder of real clips")
def test_real_clips_of_every_format_get_through(tmp_path):
    for generator in ("Real", "SVD", "HotShot"):
        for suffix in ("mp4", "gif", "mkv", "avi", "mov", "webm", "webp"):
            for clip in sorted((CORPUS / generator).glob(f"*.{suffix}"))[:4]:
                target = tmp_path / "videos" / generator / clip.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(clip)
    place = ["--features", tmp_path / "features", "--run", tmp_path / "run"]
    done = stage(
        "01_extract_features", "--videos", tmp_path / "videos", "--features", tmp_path / "features", "--pool", 4
    )
    assert done["failed"] == 0
    small = ["--epochs", 1, "--batch-size", 16, "--best", "last", "--temporal-blocks", 2, "--limit", 3]
    assert stage("02_pretrain_binary", *place, *small)["classes"] == ["Real", "Fake"]
    metrics = stage("03_attribute", *place, *small, "--level", "gen")
    assert metrics["classes"] == ["Real", "SVD", "HotShot"] and metrics["videos"] >= 3


# ---------------------------------------------------------------- slow: the README as it stands, and controls


@pytest.mark.slow
@pytest.mark.graph
def test_commands_of_the_readme_run(tmp_path, monkeypatch):
    """Every python line of README.md and docs/, in order, on at most six videos per generator."""
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        _, script, *arguments = shlex.split(command, comments=True)
        if script == "reproduce.py":
            continue  # `make check` runs the demo itself
        print(command)
        reported = script == "attribute_video.py" and "--calibrate" not in arguments
        short = ["--steps", 20] if "--preset" in arguments else []
        stage(script.removesuffix(".py"), *arguments, *short, "--max-files" if reported else "--limit", 6)


def chance_probability(run, level, classes):
    """Permutation test: how often shuffled test labels agree with the predictions at least as well as the true ones."""
    with np.load(run / f"{level}_embeddings.npz") as arrays:
        test = arrays["split"] == "test"
        labels = np.array([classes.index(name) for name in arrays["class"][test]])
        predicted = arrays["probabilities"][test].argmax(axis=1)
    random = np.random.default_rng(0)
    accuracy = np.mean(labels == predicted)
    return np.mean([np.mean(random.permutation(labels) == predicted) >= accuracy for _ in range(2000)])


def train_all_levels(features, run, levels=LEVELS):
    """The demo's settings with cross-entropy alone, since mining collapses where there is nothing to find."""
    found = {}
    for level in levels:
        flags = ["--preset", "small"]
        place = ["--features", features, "--run", run]
        if level == "bin":
            metrics = stage("02_pretrain_binary", *place, *flags)
        else:
            metrics = stage("03_attribute", *place, *flags, "--level", level, "--loss", "ce")
        found[level] = chance_probability(run, level, metrics["classes"])
    return found


@pytest.mark.slow
@pytest.mark.graph
def test_strength_zero_is_at_chance(tmp_path):
    stage("simulate_videos", "--out", tmp_path / "zoo", "--clips-per-generator", 20, "--strength", 0)
    stage("01_extract_features", "--videos", tmp_path / "zoo", "--features", tmp_path / "features", "--pool", 2)
    found = train_all_levels(tmp_path / "features", tmp_path / "run")
    assert min(found.values()) > 0.001, found  # five tests at one in a thousand


@pytest.mark.slow
@pytest.mark.graph
def test_shuffled_labels_stay_at_chance(tmp_path):
    demo = ROOT / "features" / "zoo"
    shutil.copytree(demo, tmp_path / "features", copy_function=os.symlink)
    for index in (tmp_path / "features").glob("index-*.csv"):
        index.unlink()
    rows = read_index(demo)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [row._replace(generator=rows[i].generator) for row, i in zip(rows, order, strict=True)]
    write_index(tmp_path / "features" / "index-1-of-1.csv", shuffled)
    found = train_all_levels(tmp_path / "features", tmp_path / "run", levels=("bin", "gen"))
    assert min(found.values()) > 0.001, found


@pytest.mark.slow
def test_demo_beats_chance_and_a_probe_blind_to_time():
    run = ROOT / "runs" / "demo"
    for level in LEVELS:
        metrics = json.loads((run / f"{level}.json").read_text())
        assert metrics["simulated"]
        assert chance_probability(run, level, metrics["classes"]) < 0.001
    videos = videos_of(metrics, ROOT / "features" / "zoo")
    blind = score([row.label for row in videos.test], linear_probe(videos), videos.classes)
    assert blind["macro_accuracy"] + 0.05 < metrics["macro_accuracy"] < 0.95
