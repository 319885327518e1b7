"""Generators left out of training: rows of scores, and where their clips land."""

import numpy as np
import pytest
from scipy.special import softmax

from basics.artifacts import write_json
from common import build_saga
from experiments import unseen
from experiments.unseen import LeftOut
from report.scores import SCORES
from tokens.generators import load_generators


def test_a_perfect_score_has_an_auroc_of_one_and_a_useless_one_of_half(monkeypatch):
    monkeypatch.setattr(unseen, "BOOTSTRAPS", 50)
    random = np.random.default_rng(0)
    groups = np.arange(60)
    perfect, useless = (
        {"Sora": LeftOut(random.normal(size=60), random.normal(shift, size=60), groups, groups)} for shift in (9, 0)
    )
    entries = [unseen.score_row("s", [one, one])["generators"]["Sora"] for one in (perfect, useless)]
    assert (entries[0]["auroc"], entries[0]["fpr_at_tpr"]) == ([1, 1], [0, 0])
    low, high = entries[1]["interval"][0]
    assert low < 0.5 < high and min(entries[1]["fpr_at_tpr"]) > 0.8
    assert (entries[0]["seen"], entries[0]["unseen"]) == (60, 60)


def test_a_table_has_means_over_seeds(monkeypatch):
    monkeypatch.setattr(unseen, "BOOTSTRAPS", 5)
    seen, groups = np.array([0.0, 1]), np.arange(2)
    seeds = [{"Sora": LeftOut(seen, unseen, groups, groups)} for unseen in (np.array([2.0, 3]), np.array([-1.0, -2]))]
    row = unseen.score_row("s", seeds)
    assert row["generators"]["Sora"]["auroc"] == [1, 0]
    assert unseen.score_table([row])[-1].startswith("| s | 0.50 | 0.50 | 0.50 (")


def test_landing_is_measured_where_a_class_is_shared(tmp_path):
    """DynamiCrafter lands on SD 2.1, ModelScope half of the time, Latte's clips never do and are their chance."""
    write_json(tmp_path / "sd.json", {"classes": ["Real", "SD 2.1", "SD 1.4"]})
    predicted = {"DynamiCrafter": [1, 1], "ModelScope": [1, 2], "Latte": [0, 2, 2, 2], "HotShot": [1, 1, 0, 0]}
    generators = [name for name, classes in predicted.items() for _ in classes]
    arrays = {"generator": np.array(["SVD", *generators]), "split": np.array(["test"] + ["unseen"] * len(generators))}
    places = np.concatenate([[0], *predicted.values()])
    np.savez(tmp_path / "sd_embeddings.npz", probabilities=np.eye(3)[places], **arrays)
    rows = {row["generator"]: row for row in unseen.landing(tmp_path, "sd", load_generators())}
    assert set(rows) == {"DynamiCrafter", "ModelScope", "Latte"}  # nobody trained has HotShot's SDXL
    assert [rows[name]["share"] for name in rows] == [1, 0.5, 0.75]
    assert rows["ModelScope"]["chance"] == pytest.approx(2 / 8)  # of Latte's and HotShot's clips
    assert rows["Latte"]["chance"] == pytest.approx(1 / 8)
    lines = unseen.landing_table([rows["ModelScope"], rows["Latte"], rows["ModelScope"] | {"share": 1}])
    assert lines[2:] == [
        "| SD-L | ModelScope | SD 2.1 | 2 | 0.50, 1.00 | 8 | 0.25, 0.25 |",
        "| SD-L | Latte | SD 1.4 | 4 | 0.75 | 8 | 0.12 |",
    ]


def test_embeddings_and_signatures_are_put_together_by_video(tmp_path):
    """The npz of 03 and 04 list the same videos in other orders, and 04 lacks one that is too short."""
    random, seen = np.random.default_rng(0), ("Real", "SVD", "Lavie")
    rows = [(f"{name}/{i}", name, name, ("train", "test")[i % 2]) for name in seen for i in range(8)]
    rows += [(f"{name}/{i}", name, "unseen", "unseen") for name in unseen.LEFT_OUT for i in range(4)]
    model = build_saga(3, frames=8, tokens=2, dim=24, class_names=seen)
    model.save(tmp_path / "gen.keras")
    embedding = random.normal(size=(len(rows), 24))
    odd = np.array([row[0] in ("Sora/1", "Sora/2") for row in rows])
    embedding[odd] *= 100  # far from every training clip, whatever the order
    columns = {
        key: np.array([row[i] for row in rows]) for i, key in enumerate(("video", "generator", "class", "split"))
    }
    arrays = columns | {
        "embedding": embedding,
        "probabilities": softmax(np.asarray(model.classifier(embedding)), axis=1),
    }
    np.savez(tmp_path / "gen_embeddings.npz", **arrays)
    order = random.permutation(np.flatnonzero(columns["video"] != "Sora/0"))
    signatures = {"video": columns["video"][order], "group": columns["video"][order]}
    np.savez(tmp_path / "gen_tsigs.npz", maps=random.random((len(order), 8, 8)), **signatures)
    scores = unseen.scores_of(tmp_path, unseen.LEFT_OUT)
    found = scores["nearest class mean"]["Sora"]
    assert sorted(found.unseen_group) == ["Sora/1", "Sora/2", "Sora/3"] and len(found.seen) == 12
    far = dict(zip(found.unseen_group, found.unseen, strict=True))
    assert min(far["Sora/1"], far["Sora/2"]) > 20 * far["Sora/3"]
    energies = -np.log(np.exp(np.float64(model.classifier(embedding))).sum(axis=1))
    wanted = {video: energies[i] for i, video in enumerate(columns["video"])}
    one = scores["energy"]["Pika"]
    np.testing.assert_allclose(one.unseen, [wanted[name] for name in one.unseen_group], rtol=1e-4)
    np.testing.assert_allclose(one.seen, [wanted[name] for name in one.seen_group], rtol=1e-4)
    assert set(scores) == set(SCORES)
