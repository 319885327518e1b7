"""The experiment on generators enrolled by a few clips, on runs that only pretend."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small import write_folder

import reproduce
from basics.running import InputError
from experiments import datasets, unseen
from tokens.dataset import read_index, write_index
from tokens.generators import load_generators


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Features of eight generators, six of them left out, and runs that only pretend: SAGA's embedding tells all
    generators apart, the tokens none; folders that `collapse` names are None.
    """
    monkeypatch.chdir(tmp_path)
    names = ["Real", "SVD", *unseen.LEFT_OUT]
    split = lambda i: ("test", "train", "train", "val")[i // 8 % 4]  # noqa: E731
    write_folder("f", ["all"], clips=96, split=split, generator=lambda _, i: names[i % 8])
    monkeypatch.setattr(unseen, "GIVEN", (1, 5, 50))
    monkeypatch.setattr(unseen, "BY_GENERATOR", 5)
    monkeypatch.setattr(unseen, "DRAWS", 2)
    asked = []

    def train_arm(args, data, arm, level, seed, only):
        asked.append((arm, level, seed, ",".join(only["train_generators"])))
        if (arm, seed) == (unseen.TWO_FEW, 1):
            return [None]
        run, random, rows = Path(f"{arm}-{seed}"), np.random.default_rng(seed), read_index("f")
        run.mkdir()
        generators = np.array([row.generator for row in rows])
        left_out = np.isin(generators, unseen.LEFT_OUT)
        split = np.where(left_out, "unseen", [row.split for row in rows])
        embedding = 9 * np.eye(8)[[names.index(name) for name in generators]] + random.normal(size=(len(rows), 8))
        videos = np.array([row.path for row in rows])
        np.savez(run / "gen_embeddings.npz", embedding=embedding, generator=generators, split=split, video=videos)
        return [run]

    monkeypatch.setattr(unseen, "train_arm", train_arm)
    return asked


def arguments(*more):
    args = reproduce.get_args(["table-7", "--features", "f", "--seeds", "2", *more])
    return args, datasets.choose_data(args)[0]


def test_enrolling_names_clips_in_clusters_and_is_at_chance_in_noise(asked, tmp_path):
    args, data = arguments()
    results = json.loads(json.dumps(unseen.measure_enrol(args, data)))
    assert {only for *_, only in asked} == {"SVD"}
    assert results["collapsed"] == {"2-stage few CE+HNM": 1, "1-stage all CE": 0}
    order = [name for name in load_generators() if name in unseen.LEFT_OUT]
    assert results["clips"] == {"classes": 2, "known": 6, "new": dict.fromkeys(order, 3)}
    rows = {(row["space"], row["naming"], row["joining"], row["given"]): row for row in results["rows"][-36:]}
    assert len(results["rows"]) == 72 and len(rows) == 36
    for joining in ("one", "all"):
        assert unseen.by_seed(rows["SAGA", "mean", joining, 5], "found") == [1, 1]
        assert unseen.by_seed(rows["SAGA", "mean", joining, 50], "kept") == [1, 1]
        assert unseen.by_seed(rows["SAGA", "neighbours", joining, 1], "found") < [0.5, 0.5]  # outvoted
    assert max(unseen.by_seed(rows["mean token", "mean", "all", 50], "found")) < 0.5
    assert unseen.enrol_chance(results, "one") == 1 / 3 and unseen.enrol_chance(results, "all") == 1 / 8
    lines = unseen.render_enrol(results)
    assert not any("nan" in line for line in lines) and any("1 (1 collapsed)" in line for line in lines)
    assert any("chance 33.3" in line for line in lines) and any("| Pika (3) |" in line for line in lines)
    unseen.draw_enrol(args, data, results, tmp_path / "enrol.png")
    assert (tmp_path / "enrol.png").stat().st_size > 10000


def test_draws_are_of_a_generators_clips_that_are_given():
    vectors, names = np.random.default_rng(0).normal(size=(18, 4)), np.repeat(["Real", "SVD", "Sora"], 6)
    roles = np.array(["train"] * 5 + ["test"] + ["train"] * 5 + ["test"] + ["given"] * 4 + ["held out"] * 2)
    seen = []

    def naming(embedding, labels):
        seen.append((len(embedding), Counter(labels.tolist())))
        assert not np.isin(embedding, vectors[np.isin(roles, ("test", "held out"))]).any()
        return lambda clips: np.full(len(clips), "Sora")

    assert unseen.accuracy_enrolled(vectors, names, roles, naming, ["Sora"], 50, np.random.default_rng(0)) == (
        0,
        {"Sora": 1},
    )
    unseen.accuracy_enrolled(vectors, names, roles, naming, ["Sora"], 3, np.random.default_rng(0))
    unseen.accuracy_enrolled(vectors, names, roles, naming, [])
    assert [count for count, _ in seen] == [14, 13, 10] and seen[1][1]["Sora"] == 3


def test_folds_and_features_without_new_generators_raise(asked):
    args, data = arguments("--folds", "2")
    with pytest.raises(InputError, match="enrolling needs the recorded split"):
        unseen.measure_enrol(args, data)
    args, data = arguments()
    rows = read_index("f")
    write_index("f/index-1-of-1.csv", [row for row in rows if row.generator in ("Real", "SVD")])
    with pytest.raises(InputError, match="clips of 0 generators outside the table; it takes two"):
        unseen.measure_enrol(args, data)
    write_index("f/index-1-of-1.csv", [row for row in rows if row.generator not in ("SVD", "Sora")])
    with pytest.raises(InputError, match="no generator to train on"):
        unseen.measure_enrol(args, data)
