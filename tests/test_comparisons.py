"""The comparisons of encoders: groups of a corpus, pooled accuracies, the change of tokens, and a small run of each."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_extract import write_clip

import reproduce
from experiments import comparisons
from experiments import datasets as corpora
from tokens.dataset import write_features, write_index, write_json
from training.evaluation import wilson_interval


def write_corpus(folder, clips):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "clips.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["path", "label", "repo", "notes"], *clips])
    return folder


def groups(corpus, tmp_path):
    corpora.corpus_csv(corpus, tmp_path / "f" / "corpus.csv")
    with open(tmp_path / "f" / "corpus.csv", newline="") as file:
        return {Path(row["path"]).name: row["group"] for row in csv.DictReader(file)}


def test_clips_of_one_source_are_in_two_groups(tmp_path):
    clips = [
        ["SVD/a.mp4", "SVD", "one", ""],
        ["SVD/b.mp4", "SVD", "one", ""],
        ["SVD/c.mp4", "SVD", "two", ""],
        ["PIA/d.mp4", "PIA", "three", ""],
        ["PIA/e.mp4", "PIA", "three", ""],
        ["PIA/f.mp4", "PIA", "three", "small; shares first frame/content with d.mp4"],
        ["Lavie/g.mp4", "Lavie", "one", ""],
    ]
    found = groups(write_corpus(tmp_path / "corpus", clips), tmp_path)
    assert found["a.mp4"] == found["b.mp4"] != found["c.mp4"]  # two repositories: each is a group
    assert found["d.mp4"] == found["f.mp4"] != found["e.mp4"]  # one repository: only what shares content
    assert len({found[name] for name in ("a.mp4", "c.mp4", "d.mp4", "e.mp4", "g.mp4")}) == 5


def test_a_chain_of_shared_content_is_broken(tmp_path):
    clips = [["PIA/a.mp4", "PIA", "one", ""]]
    shares = {"b": "c", "c": "a", "d": "b"}
    clips += [[f"PIA/{x}.mp4", "PIA", "one", f"shares first frame/content with {y}.mp4"] for x, y in shares.items()]
    assert len(set(groups(write_corpus(tmp_path / "corpus", clips), tmp_path).values())) == 1


def test_a_corpus_without_labels_is_not_refused_in_one_line(tmp_path):
    (tmp_path / "clips.csv").write_text("path,label\na.mp4,SVD\n")
    with pytest.raises(ValueError, match=r"clips.csv: missing column\(s\) notes, repo"):
        corpora.corpus_csv(tmp_path, tmp_path / "out.csv")
    with pytest.raises(ValueError, match="gone/clips.csv is missing; name the folder of real clips with --corpus"):
        reproduce.main(["corpus", "--corpus", str(tmp_path / "gone")])


def test_pooled_accuracies_are_not_those_of_the_counts():
    def fold(labels, saga):
        others = dict.fromkeys(comparisons.PROBES, labels) | {"metadata only": ["x"] * len(labels)}
        return {"labels": labels, "SAGA": saga} | others

    first = [fold(["a", "a", "b"], ["a", "b", "b"]), fold(["a"], ["b"])]  # 2 of 4; a 1 of 3, b 1 of 1
    second = [fold(["a", "a"], ["a", "a"]), fold(["a", "b"], ["a", "b"])]  # all
    row = comparisons.accuracy_row([first, second])
    saga = row["models"]["SAGA"]
    assert (row["videos"], row["classes"], row["seeds"]) == (4, 2, 2)
    assert (row["majority"], row["uniform"]) == (0.75, 0.5)
    assert saga["micro"] == pytest.approx((2 / 4 + 1) / 2)
    assert saga["macro"] == pytest.approx(((1 / 3 + 1) / 2 + 1) / 2)
    assert saga["folds"] == [[pytest.approx(2 / 3), 0.0], [1.0, 1.0]]
    assert saga["interval"] == pytest.approx(wilson_interval(3, 4))
    assert [row["models"][model]["micro"] for model in ("linear on mean tokens", "metadata only")] == [1, 0]
    assert comparisons.accuracy_cells(row)[:2] == ["4", "0.75 / 0.50"]


def test_pooled_tokens_are_compared_with_others_than_their_regions(tmp_path):
    random = np.random.default_rng(0)
    rows, folders = [], [tmp_path / name for name in ("whole", "pooled", "shifted")]
    halves = random.integers(-8, 8, (2, 2, 8, 2, 1, 2, 1, 3)) + random.integers(-1, 2, (2, 2, 8, 2, 2, 2, 2, 3))
    for i, tokens in enumerate(halves.astype(np.float16)):  # (S, L, 2, 2, 2, 2, D): blocks of 2 x 2 tokens
        path = f"SVD/{i}"
        pooled = np.float32(tokens).mean((3, 5)).reshape(2, 8, 4, 3)
        whole = tokens.reshape(2, 8, 16, 3)
        for folder, values in zip(folders, (whole, pooled, whole + 2), strict=True):
            write_features(folder / f"{path}.npz", values, np.zeros((2, 8)), np.ones((2, 8), bool))
        rows.append({"path": path, "generator": "SVD", "group": path, "split": "train", "windows": 2, "error": ""})
    for folder in folders:
        write_index(folder / "index-1-of-1.csv", rows)
        write_json(folder / "recipe.json", {"dim": 3})
    values = halves.reshape(-1, 3)
    means = halves.mean((4, 6), keepdims=True)
    deviation = np.sqrt(np.square(values - values.mean(0)).sum(1).mean())
    within = np.sqrt(np.square(halves - means).sum(-1).mean())
    assert comparisons.token_change(folders[0], folders[0]) is None
    assert comparisons.token_change(folders[1], folders[0]) == pytest.approx(within / deviation, rel=1e-3)
    assert comparisons.token_change(folders[2], folders[0]) == pytest.approx(np.sqrt(12) / deviation, rel=1e-3)
    write_json(folders[2] / "recipe.json", {"dim": 4})
    assert comparisons.token_change(folders[2], folders[0]) is None


@pytest.mark.slow
def test_a_small_corpus_has_no_table(tmp_path, monkeypatch):
    """Two encoders' rows on six clips of two labels and a camera; the second run keeps the first encoder's rows."""
    monkeypatch.chdir(tmp_path)
    random, clips = np.random.default_rng(0), []
    for label in ("Real", "SVD", "PIA"):
        for i in range(10):
            path = f"{label}/{i}.mp4"
            frames = list(random.integers(0, 256, (8, 32, 32, 3), np.uint8))
            write_clip(tmp_path / "corpus" / "clips" / path, fps=8, frames=frames)
            clips.append([path, label, label, ""])
    write_corpus(tmp_path / "corpus", clips)
    monkeypatch.setattr(comparisons, "FOLDS", 2)
    monkeypatch.setattr(comparisons, "LEVELS", ("bin",))
    monkeypatch.setattr(comparisons, "VARIANTS", {"equalized": "--equalize 128"})
    monkeypatch.setattr(comparisons, "TRAINING", "--batch-size 8 --epochs 1 --best last --learning-rate 3e-4")
    other = {"encoder": "other", "clips": "equalized", "level": "bin", "classes": 2}
    other |= {"videos": 3, "majority": 0.5, "uniform": 0.5, "seeds": 1}
    models = {"micro": 0.5, "macro": 0.5, "interval": [0.1, 0.9], "folds": [[0.5]]}
    other["models"] = dict.fromkeys(("SAGA", "linear on mean tokens", "metadata only"), models)
    Path("results").mkdir()
    Path("results/corpus.json").write_text(json.dumps([other]))
    (row,) = reproduce.main(["corpus", "--corpus", "corpus"])
    assert (row["encoder"], row["videos"], row["classes"], len(row["models"]["SAGA"]["folds"][0])) == ("dct", 30, 2, 2)
    assert [kept["encoder"] for kept in json.loads(Path("results/corpus.json").read_text())] == ["dct", "other"]
    table = Path("results/corpus.md").read_text().splitlines()
    assert len(table) == 4 and table[2].startswith("| equalized | BIN-L | dct | 2 | 30 | 0.67 / 0.50 |")
