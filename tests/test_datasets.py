"""The real clips of a corpus as 01 reads them: whose sources are kept together."""

import csv
from pathlib import Path

import pytest

import reproduce
from basics.running import InputError
from experiments import datasets


def write_corpus(folder, clips):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "repo", "notes"], *clips])
    return folder


def groups(corpus, tmp_path):
    datasets.corpus_csv(corpus, tmp_path / "f" / "corpus.csv")
    with open(tmp_path / "f" / "corpus.csv", newline="") as file:
        return {Path(row["path"]).name: row["group"] for row in csv.DictReader(file)}


def test_clips_of_one_source_are_in_one_group(tmp_path):
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


def test_a_chain_of_shared_content_is_one_group(tmp_path):
    clips = [["PIA/a.mp4", "PIA", "one", ""]]
    shares = {"b": "c", "c": "a", "d": "b"}
    clips += [[f"PIA/{x}.mp4", "PIA", "one", f"shares first frame/content with {y}.mp4"] for x, y in shares.items()]
    assert len(set(groups(write_corpus(tmp_path / "corpus", clips), tmp_path).values())) == 1


def test_a_corpus_without_labels_or_repositories_raises(tmp_path):
    (tmp_path / "clips.csv").write_text("path,label\na.mp4,SVD\n")
    with pytest.raises(InputError, match=r"clips.csv: missing column\(s\) notes, repo"):
        datasets.corpus_csv(tmp_path, tmp_path / "out.csv")


@pytest.mark.parametrize(("entry", "data", "clips"), [("table-7", "zoo", 60), ("figure-s1", "large", 1000)])
def test_an_entry_simulates_as_many_clips_as_it_wants(monkeypatch, entry, data, clips):
    calls = []
    monkeypatch.setattr(datasets, "stage", lambda name, *flags, overwrite: calls.append([name, *map(str, flags)]))
    monkeypatch.setattr(datasets, "make_data", lambda args, name, folder, *rest: (name, folder))
    found = datasets.choose_data(reproduce.get_args([entry]))
    assert found == [(f"{data}-dct", Path(f"features/{data}-pool-2"))]
    made, extracted = calls
    assert made == ["simulate_videos", "--out", f"data/{data}", "--strength", "1", "--clips-per-generator", str(clips)]
    assert extracted[1:3] == ["--videos", f"data/{data}"]
