"""New generators by a few of their clips: namings against plain loops, and --enrol on a small run."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from small import untrained_run
from stages import stage

import attribute_video
from basics.artifacts import read_arrays, read_json, write_arrays
from basics.running import InputError
from report import run as runs
from report import scores
from report.enrol import enrol, measure_enrolled, print_enrolled
from tokens.dataset import read_index, write_index
from tokens.generators import TABLE

# ---------------------------------------------------------------- namings


def clusters(counts, apart=3.0, width=4, seed=0):
    """Embeddings (V, D) around a random centre for each class, and names (V,)."""
    random = np.random.default_rng(seed)
    names = np.repeat(list(counts), list(counts.values()))
    centres = {name: apart * random.normal(size=width) for name in counts}
    return np.stack([centres[name] for name in names]) + random.normal(size=(len(names), width)), names


def test_naming_by_means_equals_one_by_loops():
    train, labels = clusters({"Sora": 9, "Pika": 5, "Real": 20}, apart=1)
    clips, _ = clusters({"Sora": 30, "Pika": 30}, apart=1, seed=1)
    train, clips = train * [5, 1, 1, 1], clips * [5, 1, 1, 1]
    means = {
        name: sum(train[i] for i in range(34) if labels[i] == name) / (labels == name).sum()
        for name in ("Sora", "Pika", "Real")
    }
    residuals = np.stack([train[i] - means[labels[i]] for i in range(34)])
    precision = LedoitWolf(assume_centered=True).fit(residuals).precision_
    euclidean, mahalanobis = [], []
    for clip in clips:
        lengths = {name: sum((clip[d] - means[name][d]) ** 2 for d in range(4)) for name in means}
        euclidean.append(min(lengths, key=lengths.get))
        lengths = {name: (clip - means[name]) @ precision @ (clip - means[name]) for name in means}
        mahalanobis.append(min(lengths, key=lengths.get))
    assert scores.name_by_mean(train, labels)(clips).tolist() == euclidean
    assert scores.name_by_mahalanobis(train, labels)(clips).tolist() == mahalanobis != euclidean


def test_naming_by_neighbours_equals_a_vote_by_loops():
    train, labels = clusters({"Sora": 12, "Pika": 12, "Real": 12}, apart=1)
    clips, _ = clusters({"Sora": 30, "Pika": 30}, apart=1, seed=1)
    call = scores.name_by_neighbours(train, labels, k=3)(clips)
    for clip, name in zip(clips, call, strict=True):
        nearest = sorted(range(36), key=lambda i: sum((clip - train[i]) ** 2))[:3]
        votes = Counter(labels[i] for i in nearest)
        assert votes[name] == max(votes.values())
    few = scores.name_by_neighbours(train[[0, 1, 12]], labels[[0, 1, 12]])
    assert set(few(clips)) == {"Sora"}  # of three clips for five neighbours, all vote


@pytest.mark.parametrize("naming", scores.NAMINGS)
def test_a_far_class_takes_no_trained_clip(naming):
    train, labels = clusters({"Sora": 20, "Real": 20})
    clips, _ = clusters({"Sora": 30, "Real": 30}, apart=4, seed=1)
    far, joined = np.concatenate([train, 1000 + train[:6]]), np.append(labels, ["Kling"] * 6)
    call = scores.NAMINGS[naming]
    assert (call(far, joined)(clips) == call(train, labels)(clips)).all()
    assert set(call(far, joined)(1000 + clips)) == {"Kling"}


@pytest.mark.parametrize("naming", scores.NAMINGS)
def test_naming_of_nothing_or_of_nan_raises(naming):
    call = scores.NAMINGS[naming]
    with pytest.raises(InputError, match="0 training clips"):
        call(np.zeros((0, 3)), np.zeros(0, str))
    with pytest.raises(InputError, match="not finite"):
        call([[np.nan], [1.0]], np.array(["a", "b"]))


# ---------------------------------------------------------------- a small run


@pytest.fixture(scope="module")
def trained(zoo, tmp_path_factory):
    """A run at GEN-L whose weights are as they are drawn, and that ModelScope was left out of."""
    features, folder = tmp_path_factory.mktemp("features"), tmp_path_factory.mktemp("run")
    stage("01_extract_features", "--videos", zoo, "--features", features, "--pool", 2)
    rows = [
        row._replace(split="test" if row.path < f"{row.generator}/0002" else "train") for row in read_index(features)
    ]
    write_index(features / "index-1-of-1.csv", rows)
    untrained_run(features, folder, train_generators=["SVD", "Pika"])
    return runs.load_run(folder)


@pytest.fixture(scope="module")
def encoder(trained):
    return runs.load_encoder(trained.features)


@pytest.fixture
def own(trained, tmp_path):
    """The run in a folder of its own."""
    return trained._replace(name=str(shutil.copytree(trained.name, tmp_path / "run")))


@pytest.fixture(scope="module")
def new(zoo):
    return [str(path) for path in sorted((zoo / "ModelScope").glob("*.mp4"))]


def enrolled(run):
    return read_arrays(Path(run.name) / "gen_enrolled.npz")


def fails(*given, **more):
    with pytest.raises(InputError) as raised:
        enrol(*given, **more)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_embedding_is_that_of_the_clip(own, new, encoder):
    enrol("Kling", new[:3], own, encoder)
    arrays, features = enrolled(own), read_arrays(Path(own.name) / "gen_embeddings.npz")
    expected = dict(zip(features["video"].tolist(), features["embedding"], strict=True))
    assert arrays["video"].tolist() == new[:3] and arrays["generator"].tolist() == ["Kling"] * 3
    for path, embedding in zip(new, arrays["embedding"], strict=False):
        np.testing.assert_allclose(embedding, expected["/".join(Path(path).parts[-2:])], atol=0.02)


def test_enrolling_again_replaces_and_another_generator_adds(own, new, encoder):
    enrol("Kling", new[:4], own, encoder)
    enrol("Luma", new[4:6], own, encoder)
    result = enrol("Kling", new[5:], own, encoder, method="neighbours")
    arrays = enrolled(own)
    assert Counter(arrays["generator"].tolist()) == {"Luma": 2, "Kling": 3} and result["classes"] == 5
    assert arrays["video"].tolist() == [*new[4:6], *new[5:]] and arrays["embedding"].dtype == np.float32
    made = arrays["recipe"]["generators"]
    assert {name: len(own["clips_sha256"]) for name, own in made.items()} == {"Kling": 3, "Luma": 2}
    assert made["Kling"]["clips_sha256"][0] == made["Luma"]["clips_sha256"][1]


def test_names_are_compared_as_unicode_means_them_and_printed_escaped(own, new, encoder, capsys):
    enrol("M\u00f6bius", new[:1], own, encoder)
    enrol("mo\u0308bius", new[1:3], own, encoder)
    assert enrolled(own)["generator"].tolist() == ["M\u00f6bius"] * 2
    result = enrol("a\x1b[31m", new[:1], own, encoder)
    print_enrolled(result)
    said = capsys.readouterr().out
    assert "\x1b" not in said and said.count("a\\x1b[31m") == 2


def test_edited_enrolled_clips_are_refused(own, new, encoder):
    enrol("Kling", new[:2], own, encoder)
    path, whole = Path(own.name) / "gen_enrolled.npz", enrolled(own)
    changes = [{"embedding": whole["embedding"][:, 1:]}, {"video": whole["video"][:1]}, {"recipe": {"generators": 1}}]
    for change in [*changes, {"embedding": whole["embedding"] * np.nan}]:
        write_arrays(path, whole | change)
        assert "gen_enrolled.npz: damaged" in fails("Luma", new[:1], own, encoder)


def test_an_alias_of_the_runs_own_table_is_known(own, new, encoder, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(TABLE.read_text(encoding="utf-8") + "Kling,Klingon,T2V,Unknown,Kuaishou\n")
    metrics = read_json(Path(own.name) / "gen.json")
    metrics["recipe"]["paths"]["generators"] = str(table)
    enrol("klingon", new[:1], own._replace(metrics={"gen": metrics}), encoder)
    assert set(enrolled(own)["generator"]) == {"Kling"}


def test_command_enrols_folders_and_leaves_out_what_cannot_be_read(own, new, capsys, monkeypatch):
    monkeypatch.setattr(runs, "load_run", lambda folder, dtype: own)
    flags = ["--enrol", "Kling", "--run", own.name]
    assert attribute_video.main([*flags, str(Path(new[0]).parent), "--max-files", "3"]) == 3
    assert enrolled(own)["video"].tolist() == new[:3]
    said = capsys.readouterr().out
    assert "3 clips of Kling enrolled in" in said and "are named correctly, each with itself left out" in said
    assert "the run's 6 test clips, without -> with the enrolled classes: micro" in said
    with pytest.raises(InputError, match="1 of 2 files could not be read"):
        attribute_video.main([*flags, "/dev/zero", new[7]])
    said = capsys.readouterr().out
    assert "/dev/zero: not enrolled: not a regular file" in said and enrolled(own)["video"].tolist() == new[7:]
    assert "Kling, 1 clip enrolled: too few to leave one out, so nothing can be measured" in said


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("method", scores.NAMINGS)
def test_clearly_different_clips_are_named_and_change_no_other_name(method, capsys):
    embedding, names = clusters({"Real": 12, "SVD": 12, "Luma": 6, "Kling": 6}, apart=9)
    roles, known = np.array(["train", "train", "test"] * 8), np.isin(names, ("Real", "SVD"))
    own = {"embedding": embedding[known], "class": names[known], "split": roles}
    result = measure_enrolled(own, {"embedding": embedding[~known], "generator": names[~known]}, "Kling", method)
    assert (result["clips"], result["found"], result["classes"], result["chance"]) == (6, 6, 4, 0.25)
    before, after = result["known"].values()
    assert before["per_class"] == after["per_class"] == {"Real": [4, 4], "SVD": [4, 4]}
    print_enrolled(result | {"name": "Kling"})
    assert "6 clips enrolled: 6 of 6 are named correctly, each with itself left out, 1.00" in capsys.readouterr().out


def test_left_out_clips_equal_a_loop_over_class_means():
    embedding, names = clusters({"Real": 12, "SVD": 12, "Kling": 9}, apart=0.7)
    own = {"embedding": embedding[:24], "class": names[:24], "split": np.array(["train", "test"] * 12)}
    result = measure_enrolled(own, {"embedding": embedding[24:], "generator": names[24:]}, "Kling", "mean")
    found = 0
    for i in range(24, 33):
        means = {name: embedding[:24:2][names[:24:2] == name].mean(axis=0) for name in ("Real", "SVD")}
        means["Kling"] = np.mean([embedding[j] for j in range(24, 33) if j != i], axis=0)
        found += min(means, key=lambda name: np.linalg.norm(embedding[i] - means[name])) == "Kling"  # noqa: B023
    assert 0 < found < 9 and result["found"] == found


# ---------------------------------------------------------------- bad input


def test_trained_generators_and_clips_that_cannot_be_read_are_refused(own, new, encoder, tmp_path):
    for name in ("SVD", "svd", "Real"):
        assert "was trained on it; it needs no enrolling" in fails(name, new, own, encoder)
    assert "no clip that can be read, so nothing is enrolled" in fails("Kling", ["/dev/zero"], own, encoder)
    assert "no clip that can be read" in fails("Kling", [], own, encoder)
    assert "enrolling wants the folder" in fails("Kling", new, own._replace(name="run.zip"), encoder)
    bin_alone = own._replace(models={"bin": own.models["gen"]}, metrics={"bin": own.metrics["gen"]})
    assert "tells real from fake alone" in fails("Kling", new, bin_alone, encoder)
    assert not (Path(own.name) / "gen_enrolled.npz").exists()


def test_missing_and_damaged_files_raise(own, new, encoder):
    file = Path(own.name) / "gen_enrolled.npz"
    file.write_bytes(b"junk")
    message = fails("Kling", new, own, encoder)
    assert "gen_enrolled.npz: damaged" in message and "delete it and enrol again" in message
    file.unlink()
    file = Path(own.name) / "gen_embeddings.npz"
    whole = file.read_bytes()
    for content in (b"junk", whole[:2000]):
        file.write_bytes(content)
        assert "gen_embeddings.npz: damaged" in fails("Kling", new, own, encoder)
    np.savez(file, video=np.array(["Real/1.mp4"]))
    assert "run 03_attribute.py again" in fails("Kling", new, own, encoder)
    file.unlink()
    assert "gen_embeddings.npz is missing; run 03_attribute.py again" in fails("Kling", new, own, encoder)


def test_enrolled_clips_of_another_model_and_a_collapse_are_refused(own, new, encoder):
    enrol("Kling", new[:1], own, encoder)
    arrays, folder = enrolled(own), Path(own.name)
    recipe = arrays["recipe"] | {"model_sha256": "that of a model trained before"}
    write_arrays(folder / "gen_enrolled.npz", arrays | {"recipe": recipe})
    message = fails("Luma", new, own, encoder)
    assert "is of another model than" in message and "delete it and enrol again" in message
    whole = read_arrays(folder / "gen_embeddings.npz")
    write_arrays(folder / "gen_embeddings.npz", whole | {"embedding": np.ones_like(whole["embedding"])})
    assert "all embeddings are one point, the model has collapsed" in fails("Kling", new, own, encoder)
