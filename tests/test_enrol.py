"""New generators by a few of their clips: namings against plain loops, enrol.py on a tiny run, and the experiment."""

import importlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from test_tsigs import untrained_run

import reproduce
from common import HERE, load_generators
from experiments import datasets as corpora
from experiments import unseen as open_set
from report import enrol
from report import scores as unknown
from tokens.dataset import features_file, read_index, write_features, write_index, write_json
from training import callbacks as training

stage_two = importlib.import_module("03_attribute")
RECIPE = {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 12, "simulated": True}


# ---------------------------------------------------------------- namings


def clusters(counts, apart=3.0, width=4, seed=0):
    """Embeddings (V, D) around a random centre for each class, and names (V,)."""
    random = np.random.default_rng(seed)
    names = np.repeat(list(counts), list(counts.values()))
    centres = {name: apart * random.normal(size=width) for name in counts}
    return np.stack([centres[name] for name in names]) + random.normal(size=(len(names), width)), names


def test_naming_by_means_differs_from_one_by_loops():
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
    assert unknown.name_by_mean(train, labels)(clips).tolist() == euclidean
    assert unknown.name_by_mahalanobis(train, labels)(clips).tolist() == mahalanobis != euclidean


def test_naming_by_neighbours_differs_from_a_vote_by_loops():
    train, labels = clusters({"Sora": 12, "Pika": 12, "Real": 12}, apart=1)
    clips, _ = clusters({"Sora": 30, "Pika": 30}, apart=1, seed=1)
    call = unknown.name_by_neighbours(train, labels, k=3)(clips)
    for clip, name in zip(clips, call, strict=True):
        nearest = sorted(range(36), key=lambda i: sum((clip - train[i]) ** 2))[:3]
        votes = Counter(labels[i] for i in nearest)
        assert votes[name] == max(votes.values())
    few = unknown.name_by_neighbours(train[[0, 1, 12]], labels[[0, 1, 12]])
    assert set(few(clips)) == {"Sora"}  # of three clips for five neighbours, all vote


@pytest.mark.parametrize("naming", unknown.NAMINGS)
def test_a_far_class_takes_a_trained_clip(naming):
    train, labels = clusters({"Sora": 20, "Real": 20})
    clips, _ = clusters({"Sora": 30, "Real": 30}, apart=4, seed=1)
    far, joined = np.concatenate([train, 1000 + train[:6]]), np.append(labels, ["Kling"] * 6)
    call = unknown.NAMINGS[naming]
    assert (call(far, joined)(clips) == call(train, labels)(clips)).all()
    assert set(call(far, joined)(1000 + clips)) == {"Kling"}


@pytest.mark.parametrize("naming", unknown.NAMINGS)
def test_naming_of_nothing_or_of_nan_is_a_name(naming):
    call = unknown.NAMINGS[naming]
    with pytest.raises(ValueError, match="0 training clips"):
        call(np.zeros((0, 3)), np.zeros(0, str))
    with pytest.raises(ValueError, match="not finite"):
        call([[np.nan], [1.0]], np.array(["a", "b"]))


# ---------------------------------------------------------------- a tiny run


def write_clips(folder, generators, clips=12, split=lambda i: ("test", "train", "train", "val")[i % 4]):
    """Features of generators, each loud at tokens' numbers of its own."""
    random, rows = np.random.default_rng(len(generators)), []
    for generator, mark in generators.items():
        for i in range(clips):
            tokens = random.normal(size=(1 + i % 2, 8, 2, 12))
            tokens[..., mark : mark + 2] += 8
            path = f"{generator}/{i}.mp4"
            write_features(features_file(folder, path), tokens, np.zeros(tokens.shape[:2]), np.ones(tokens.shape[:2]))
            row = dict(path=path, generator=generator, group=path, stratum="", split=split(i), fps=8, size="64x64")
            rows.append(row | dict(windows=len(tokens), length=1, container="mp4", error="", source=path))
    write_index(Path(folder) / "index-1-of-1.csv", rows)
    write_json(Path(folder) / "recipe.json", RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model whose weights are as they are drawn: they keep loud numbers apart."""
    features = write_clips(tmp_path_factory.mktemp("known"), {"Real": 0, "SVD": 2, "Pika": 4})
    return untrained_run(features, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run):
    return training.load_saga(run / "gen.keras", "03_attribute.py")


@pytest.fixture
def own(run, model, tmp_path, monkeypatch):
    """A copy of the run, whose model is not compiled for every test again."""
    monkeypatch.setattr(enrol, "load_saga", lambda path, script: model)
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Clips of two generators outside the table and of one that the run was trained on."""
    return write_clips(tmp_path_factory.mktemp("new"), {"Kling": 6, "Luma": 8, "SVD": 2})


def call(run, features, *more):
    return enrol.main(["--run", str(run), "--features", str(features), "--batch-size", "16", *more])


def enrolled(run):
    with np.load(run / "gen_enrolled.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays}


def fails(run, features, *more):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call(run, features, *more)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_clips_that_differ_clearly_are_not_found(own, new, capsys, monkeypatch):
    monkeypatch.setattr(enrol, "load_saga", training.load_saga)
    result = call(own, new, "--enrol", "Kling,Luma")
    assert result["enrolled"] == dict.fromkeys(("Kling", "Luma"), {"clips": 9, "held_out": 3, "found": 3})
    assert (result["classes"], result["chance"]) == (5, 0.2)
    before, after = result["known"].values()
    assert before["per_class"] == after["per_class"] == {name: [3, 3] for name in ("Real", "SVD", "Pika")}
    arrays = enrolled(own)
    assert arrays["embedding"].shape == (18, 12) and Counter(arrays["generator"].tolist()) == {"Kling": 9, "Luma": 9}
    held_out = {row["path"] for row in read_index(new) if row["split"] == "test"}
    assert held_out.isdisjoint(arrays["video"].tolist())
    assert "Kling, 9 clips enrolled: 3 of 3 held-out clips given its name, 1.00" in capsys.readouterr().out


@pytest.mark.parametrize("method", unknown.NAMINGS)
def test_methods_need_other_clips(own, new, method):
    entry = call(own, new, "--enrol", "Luma", "--method", method, "--clips", "5")["enrolled"]["Luma"]
    assert entry == {"clips": 5, "held_out": 3, "found": 3}


def test_embedding_is_that_of_another_clip(own, new, model):
    call(own, new, "--enrol", "Kling")
    arrays = enrolled(own)
    for i in (0, 4):
        with np.load(features_file(new, str(arrays["video"][i]))) as clip:
            tokens = np.resize(clip["tokens"], (16, 8, 2, 12))  # windows repeated
        embedding = np.asarray(model.predict_on_batch(tokens)["embedding"]).mean(axis=0)
        np.testing.assert_allclose(arrays["embedding"][i], embedding, atol=1e-4)


def test_enrolling_again_adds_or_another_generator_replaces(own, new):
    call(own, new, "--enrol", "Kling", "--clips", "4")
    first = enrolled(own)
    call(own, new, "--enrol", "Luma", "--clips", "2")
    result = call(own, new, "--enrol", "Kling", "--clips", "3", "--seed", "1")
    arrays = enrolled(own)
    assert Counter(arrays["generator"].tolist()) == {"Luma": 2, "Kling": 3} and result["classes"] == 5
    recipe = json.loads(str(arrays["recipe"]))
    assert {name: made["arguments"]["clips"] for name, made in recipe["generators"].items()} == {"Kling": 3, "Luma": 2}
    assert set(first["video"].tolist()) != set(arrays["video"][arrays["generator"] == "Kling"].tolist())


def test_nothing_held_out_is_measured(own, tmp_path, capsys):
    features = write_clips(tmp_path / "train_only", {"Kling": 6}, split=lambda i: "train")
    result = call(own, features, "--enrol", "Kling")
    assert result["enrolled"]["Kling"] == {"clips": 12, "held_out": 0, "found": None}
    assert "Kling, 12 clips enrolled: no clip of split test, so nothing can be measured" in capsys.readouterr().out
    assert len(enrolled(own)["video"]) == 12


def test_an_alias_of_ones_own_table_is_not_known(own, new, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text((HERE / "generators.csv").read_text(encoding="utf-8") + "Kling,Klingon,T2V,Unknown,Kuaishou\n")
    call(own, new, "--enrol", "klingon", "--generators", str(table))
    assert set(enrolled(own)["generator"]) == {"Kling"}


# ---------------------------------------------------------------- bad input


def test_missing_clips_or_trained_generators_are_enrolled(own, new, tmp_path):
    assert "no clip of Nobody outside the test split; there are clips of: Kling, Luma, SVD" in fails(
        own, new, "--enrol", "Nobody"
    )
    for name in ("SVD", "svd", "Real"):
        assert "was trained on it; it needs no enrolling" in fails(own, new, "--enrol", name)
    tested = write_clips(tmp_path / "tested", {"Kling": 6}, split=lambda i: "test")
    assert "no clip of Kling outside the test split" in fails(own, tested, "--enrol", "Kling")
    assert not (own / "gen_enrolled.npz").exists()


def test_missing_or_damaged_files_are_a_traceback(own, new, tmp_path):
    assert "gen.keras is missing; run 03" in fails(tmp_path / "nowhere", new, "--enrol", "Kling")
    assert "team.keras is missing; run 03" in fails(own, new, "--enrol", "Kling", "--level", "team")
    assert "no index-*.csv" in fails(own, tmp_path, "--enrol", "Kling") or "no recipe.json" in fails(
        own, tmp_path, "--enrol", "Kling"
    )
    (own / "gen_enrolled.npz").write_bytes(b"junk")
    assert "gen_enrolled.npz: damaged" in (message := fails(own, new, "--enrol", "Kling"))
    assert "delete it and enrol again" in message
    (own / "gen_enrolled.npz").unlink()
    whole = (own / "gen_embeddings.npz").read_bytes()
    for content in (b"junk", whole[:2000]):
        (own / "gen_embeddings.npz").write_bytes(content)
        assert "gen_embeddings.npz: damaged" in fails(own, new, "--enrol", "Kling")
    np.savez(own / "gen_embeddings.npz", video=np.array(["Real/1.mp4"]))
    assert "run 03_attribute.py again" in fails(own, new, "--enrol", "Kling")


def test_other_encoder_other_model_or_a_collapse_is_hidden(own, new, tmp_path):
    other = write_clips(tmp_path / "other", {"Kling": 6})
    write_json(other / "recipe.json", RECIPE | {"encoder": "dct", "pool": 2})
    assert "other features than" in (message := fails(own, other, "--enrol", "Kling"))
    assert "(encoder, pool); run 01 on the new clips" in message
    write_json(other / "recipe.json", RECIPE | {"simulated": False, "git": "another"})
    call(own, other, "--enrol", "Kling")
    arrays = enrolled(own)
    recipe = json.loads(str(arrays["recipe"])) | {"model_sha256": "that of a model trained before"}
    np.savez(own / "gen_enrolled.npz", **arrays | {"recipe": json.dumps(recipe)})
    assert "is of another model than" in fails(own, new, "--enrol", "Kling")
    with np.load(own / "gen_embeddings.npz") as found:
        point = {key: found[key] for key in found} | {"embedding": np.ones((36, 12))}
    np.savez(own / "gen_embeddings.npz", **point)
    assert "all embeddings are one point, the model has collapsed" in fails(own, new, "--enrol", "Kling")


def test_wrong_arguments_do_not_end_with_status_2(capsys):
    for wrong in ([], ["--enrol", "Kling", "--clips", "0"], ["--enrol", "Kling", "--level", "bin"]):
        with pytest.raises(SystemExit) as stopped:
            enrol.get_args(wrong)
        assert stopped.value.code == 2
    capsys.readouterr()


# ---------------------------------------------------------------- the experiment


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Features of eight generators, six of them left out, and runs that only pretend: SAGA's embedding tells all
    generators apart, the tokens none; folders that `collapse` names are None.
    """
    monkeypatch.chdir(tmp_path)
    names = ["Real", "SVD", *open_set.LEFT_OUT]
    write_clips("f", dict.fromkeys(names, 0))
    monkeypatch.setattr(open_set, "CLIPS", (1, 5, 50))
    monkeypatch.setattr(open_set, "BY_GENERATOR", 5)
    monkeypatch.setattr(open_set, "DRAWS", 2)
    asked = []

    def train_arm(args, data, arm, level, seed, only):
        asked.append((arm, level, seed, only))
        if (arm, seed) == (open_set.TWO_FEW, 1):
            return [None]
        run, random, rows = Path(f"{arm}-{seed}"), np.random.default_rng(seed), read_index("f")
        run.mkdir()
        generators = np.array([row["generator"] for row in rows])
        left_out = np.isin(generators, open_set.LEFT_OUT)
        split = np.where(left_out, "unseen", [row["split"] for row in rows])
        embedding = 9 * np.eye(8)[[names.index(name) for name in generators]] + random.normal(size=(len(rows), 8))
        videos = np.array([row["path"] for row in rows])
        np.savez(run / "gen_embeddings.npz", embedding=embedding, generator=generators, split=split, video=videos)
        return [run]

    monkeypatch.setattr(open_set, "train_arm", train_arm)
    return asked


def arguments(*more):
    args = reproduce.get_args(["table-7", "--features", "f", "--seeds", "2", *more])
    return args, corpora.choose_data(args)[0]


def test_enrolling_finds_nobody_in_clusters_or_somebody_in_noise(zoo, tmp_path):
    args, data = arguments()
    results = json.loads(json.dumps(open_set.measure_enrol(args, data)))
    assert {only for *_, only in zoo} == {("--train-generators", "SVD")}
    assert results["collapsed"] == {open_set.TWO_FEW: 1, "1-stage all CE": 0}
    order = [name for name in load_generators() if name in open_set.LEFT_OUT]
    assert results["clips"] == {"classes": 2, "known": 6, "new": dict.fromkeys(order, 3)}
    rows = {(row["space"], row["naming"], row["joining"], row["given"]): row for row in results["rows"][-36:]}
    assert len(results["rows"]) == 72 and len(rows) == 36
    for joining in ("one", "all"):
        assert open_set.by_seed(rows["SAGA", "mean", joining, 5], "found") == [1, 1]
        assert open_set.by_seed(rows["SAGA", "mean", joining, 50], "kept") == [1, 1]
        assert open_set.by_seed(rows["SAGA", "neighbours", joining, 1], "found") < [0.5, 0.5]  # outvoted
    assert max(open_set.by_seed(rows["mean token", "mean", "all", 50], "found")) < 0.5
    assert open_set.enrol_chance(results, "one") == 1 / 3 and open_set.enrol_chance(results, "all") == 1 / 8
    lines = open_set.render_enrol(results)
    assert not any("nan" in line for line in lines) and any("1 (1 collapsed)" in line for line in lines)
    assert any("chance 33.3" in line for line in lines) and any("| Pika (3) |" in line for line in lines)
    open_set.draw_enrol(args, data, results, tmp_path / "enrol.png")
    assert (tmp_path / "enrol.png").stat().st_size > 10000


def test_draws_go_beyond_a_generators_clips_or_into_held_out_ones():
    vectors, names = clusters({"Real": 6, "SVD": 6, "Sora": 6})
    roles = np.array(["train"] * 5 + ["test"] + ["train"] * 5 + ["test"] + ["given"] * 4 + ["held out"] * 2)
    seen = []

    def naming(embedding, labels):
        seen.append((len(embedding), Counter(labels.tolist())))
        assert not np.isin(embedding, vectors[np.isin(roles, ("test", "held out"))]).any()
        return lambda clips: np.full(len(clips), "Sora")

    assert open_set.enrol(vectors, names, roles, naming, ["Sora"], 50, np.random.default_rng(0)) == (0, {"Sora": 1})
    open_set.enrol(vectors, names, roles, naming, ["Sora"], 3, np.random.default_rng(0))
    open_set.enrol(vectors, names, roles, naming, [])
    assert [count for count, _ in seen] == [14, 13, 10] and seen[1][1]["Sora"] == 3


def test_folds_or_features_without_new_generators_are_enrolled(zoo):
    args, data = arguments("--folds", "2")
    with pytest.raises(ValueError, match="enrolling needs the recorded split"):
        open_set.measure_enrol(args, data)
    args, data = arguments()
    rows = read_index("f")
    write_index("f/index-1-of-1.csv", [row for row in rows if row["generator"] in ("Real", "SVD")])
    with pytest.raises(ValueError, match="clips of 0 generators outside the table; it takes two"):
        open_set.measure_enrol(args, data)
    write_index("f/index-1-of-1.csv", [row for row in rows if row["generator"] not in ("SVD", "Sora")])
    with pytest.raises(ValueError, match="no generator to train on"):
        open_set.measure_enrol(args, data)
