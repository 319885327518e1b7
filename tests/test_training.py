"""Stages 2 and 3 on small invented features: batches, splits, resume, metrics, artifacts, bad input."""

import contextlib
import csv
import importlib
import json
import shutil
import signal

import keras
import numpy as np
import pytest

from common import LEVELS, WindowBatches, class_index, class_names, load_generators, resolve_generator
from tokens import split as selection
from tokens.dataset import (
    Windows,
    all_finite,
    features_file,
    map_tokens,
    read_index,
    write_features,
    write_index,
    write_json,
)
from training import callbacks as training
from training.evaluation import score

stage_one = importlib.import_module("02_pretrain_binary")
stage_two = importlib.import_module("03_attribute")
SMALL = ["--epochs", "2", "--batch-size", "16", "--learning-rate", "1e-3"]


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """Six generators of the table and one outside it; tokens carry a mark of their generator."""
    folder = tmp_path_factory.mktemp("features")
    random, rows = np.random.default_rng(0), []
    for mark, generator in enumerate(["Real", "SVD", "Pika", "SEINE", "Latte", "Lavie", "WildScrape"]):
        for i in range(20):
            windows = 1 + i % 3
            tokens = random.normal(size=(windows, 8, 2, 12)) + 3 * (np.arange(12) == mark)
            path = f"{generator}/{i}.mp4"
            write_features(features_file(folder, path), tokens, np.zeros((windows, 8)), np.ones((windows, 8)))
            split = "test" if i < 5 else "val" if i < 7 else "train"
            row = dict(path=path, generator=generator, group=path, stratum="", split=split, windows=windows, fps=8)
            rows.append(row | dict(size="64x64", length=windows, container="mp4", error="", source=path))
    rows.append(rows[-1] | dict(path="Real/broken.mp4", generator="Real", windows=0, error="no frame"))
    write_index(folder / "index-1-of-1.csv", rows)
    write_json(folder / "recipe.json", {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 12})
    return folder


@pytest.fixture(scope="session")
def run(features, tmp_path_factory):
    """A run with bin and gen trained on the features."""
    folder = tmp_path_factory.mktemp("run")
    place = ["--features", str(features), "--run", str(folder)]
    stage_one.main([*place, *SMALL])
    stage_two.main([*place, *SMALL, "--level", "gen"])
    return folder


def arguments(features, run, *more, stage=stage_one):
    return stage.get_args(["--features", str(features), "--run", str(run), *more])


# ---------------------------------------------------------------- generator table


def test_classes_differ_from_the_papers():
    assert [len(class_names(level)) for level in LEVELS] == [2, 3, 5, 15, 20]
    assert class_names("task") == ("Real", "T2V", "I2V")
    assert class_names("sd") == ("Real", "SD 2.1", "SD 1.5", "SD 1.4", "SDXL")
    assert class_index("sd", "Show_1") is None and class_index("task", "Pika") is None
    assert class_index("gen", "WildScrape") is None and class_index("bin", "WildScrape") == 1
    assert class_index("bin", "0_real") == 0
    with pytest.raises(ValueError, match="unknown level"):
        class_names("model")


@pytest.mark.parametrize(
    ("folder", "generator"),
    [("show-1", "Show_1"), ("Morph", "MorphStudio"), ("I2VGEN_XL", "I2VGen-XL"), ("train_SVD", "SVD"), ("PIA", "SD")]
    + [("VideoCrafter1", "Crafter"), ("VideoCrafter2", "VideoCrafter"), ("Lavies", "Lavie"), ("Veo", None)],
)
def test_spelling_met_in_the_wild_is_not_resolved(folder, generator):
    assert resolve_generator(folder, load_generators()) == generator


def test_table_that_names_a_generator_twice_is_accepted(tmp_path):
    table = tmp_path / "generators.csv"
    table.write_text("name,aliases,task,sd_version,team\nReal,,Real,Real,Real\nA,b-1,T2V,X,Y\nB_1,,T2V,X,Y\n")
    with pytest.raises(ValueError, match="share the name"):
        load_generators(table)
    table.write_text("name,task\nReal,Real\n")
    with pytest.raises(ValueError, match="missing column"):
        load_generators(table)


# ---------------------------------------------------------------- features and batches


def window_batches(features, **options):
    rows = selection.usable(read_index(features), features)
    windows = Windows(rows)
    labels = np.array([class_index("bin", row["generator"]) for row in rows])[windows.video]
    return WindowBatches(windows, labels, **({"batch_size": 16} | options))


def test_mapped_window_differs_from_numpys_reading(features):
    path = features_file(features, "SVD/2.mp4")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(map_tokens(path), arrays["tokens"])
    rows = selection.usable(read_index(features), features)
    np.testing.assert_array_equal(Windows(rows, memory=0)[[5, 0, 70]], Windows(rows)[[5, 0, 70]])


def test_batches_depend_on_more_than_seed_epoch_and_step(features):
    one, other = window_batches(features), window_batches(features, start_epoch=1)
    first = one[3][0]
    one.on_epoch_end()
    np.testing.assert_array_equal(one[3][0], other[3][0])
    assert not np.array_equal(first, one[3][0])
    assert not np.array_equal(first, window_batches(features, seed=1)[3][0])


def test_natural_epoch_shows_a_window_twice(features):
    batches = window_batches(features)
    seen = np.concatenate([batches.shuffle(step) for step in range(len(batches))])
    assert len(set(seen.tolist())) == len(seen) == len(batches.windows) // 16 * 16


def test_pk_batch_is_not_dealt_equally_or_repeats_too_soon(features):
    rows = selection.usable(read_index(features), features)
    windows = Windows(rows)
    generators = sorted({row["generator"] for row in rows})
    labels = np.array([generators.index(row["generator"]) for row in rows])[windows.video]
    batches = WindowBatches(windows, labels, batch_size=65, batching="pk")
    chosen = batches.deal(2)
    assert sorted(np.bincount(labels[chosen])) == [9, 9, 9, 9, 9, 10, 10]
    assert len(set(windows.video[chosen].tolist())) == 65  # 20 videos a class: nobody comes twice
    small = WindowBatches(windows, np.minimum(labels, 1), batch_size=100, batching="pk").deal(0)
    of_first = windows.video[small[np.minimum(labels, 1)[small] == 0]]
    windows_of_class = np.count_nonzero(labels == 0)
    assert len(of_first) == 50 > windows_of_class and len(set(of_first.tolist())) == 20


def test_artifact_with_a_missing_key_or_column_is_read(features, tmp_path):
    np.savez(tmp_path / "renamed.npz", token=np.zeros((1, 8, 2, 12)))
    with pytest.raises(ValueError, match=r"renamed.npz.*run 01 again"):
        map_tokens(tmp_path / "renamed.npz")
    np.savez_compressed(tmp_path / "small.npz", tokens=np.zeros((1, 8, 2, 12)))
    with pytest.raises(ValueError, match="compressed"):
        map_tokens(tmp_path / "small.npz")
    (tmp_path / "cut.npz").write_bytes(features_file(features, "SVD/2.mp4").read_bytes()[:300])
    with pytest.raises(ValueError, match="cut.npz"):
        map_tokens(tmp_path / "cut.npz")
    (tmp_path / "index-1-of-1.csv").write_text("path,generator\na,b\n")
    with pytest.raises(ValueError, match="missing column"):
        read_index(tmp_path)
    write_json(tmp_path / "recipe.json", {"frames": 8, "token": 2})
    with pytest.raises(ValueError, match="recipe.json lacks dim, tokens"):
        selection.features_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text("[1")
    with pytest.raises(ValueError, match="recipe.json: not valid JSON"):
        selection.features_recipe(tmp_path)


def test_tokens_that_are_not_finite_are_read(tmp_path):
    write_features(features_file(tmp_path, "Real/a"), np.full((1, 8, 2, 12), np.nan), np.zeros((1, 8)), np.ones((1, 8)))
    with pytest.raises(ValueError, match=r"a\.npz: tokens are not finite"):
        Windows([{"path": "Real/a", "features": tmp_path, "windows": 1}])


def test_every_float16_that_is_not_finite_is_found():
    values = np.arange(1 << 16).astype(np.uint16).view(np.float16)
    assert [all_finite(values[i : i + 1]) for i in range(len(values))] == np.isfinite(values).tolist()
    assert all_finite(values[np.isfinite(values)].reshape(2, -1)) and not all_finite(values)


# ---------------------------------------------------------------- who trains and who is tested


def paths(rows):
    return {row["path"] for row in rows}


def test_roles_disobey_the_recorded_split(features, tmp_path):
    videos = selection.choose_videos(read_index(features), "gen", arguments(features, tmp_path))
    assert [len(videos.train), len(videos.val), len(videos.test)] == [78, 12, 30]
    assert not paths(videos.train) & paths(videos.test)
    assert {row["generator"] for row in videos.unseen} == {"WildScrape"}
    last = selection.choose_videos(read_index(features), "gen", arguments(features, tmp_path, "--best", "last"))
    assert len(last.train) == 90 and not last.val


def test_unknown_and_mixed_generators_train(features, tmp_path):
    videos = selection.choose_videos(read_index(features), "task", arguments(features, tmp_path))
    assert videos.excluded == {"Pika": 20} and "Pika" not in {row["generator"] for row in videos.train}
    assert videos.classes == ("Real", "T2V", "I2V")


def test_held_out_generator_trains_or_is_tested_on_a_part(features, tmp_path):
    args = arguments(features, tmp_path, "--train-generators", "SVD,pika", "--test-generators", "Latte")
    videos = selection.choose_videos(read_index(features), "bin", args)
    assert {row["generator"] for row in videos.train} == {"Real", "SVD", "Pika"}
    assert sum(row["generator"] == "Latte" for row in videos.test) == 20
    assert {row["generator"] for row in videos.test} == {"Real", "Latte"}
    with pytest.raises(ValueError, match="outside the generator table.*WildScrape"):
        selection.choose_videos(
            read_index(features), "bin", arguments(features, tmp_path, "--train-generators", "WildScrape")
        )
    with pytest.raises(ValueError, match="no video of Sora"):
        selection.choose_videos(
            read_index(features), "bin", arguments(features, tmp_path, "--train-generators", "Sora")
        )


def test_held_out_video_shares_a_group_with_training(features, tmp_path):
    rows = [row | {"group": row["path"].split("/")[1]} for row in read_index(features)]
    args = arguments(features, tmp_path, "--train-generators", "SVD", "--test-generators", "Latte")
    videos = selection.choose_videos(rows, "bin", args)
    assert sum(row["generator"] == "Latte" for row in videos.test) == 5


def test_few_labels_are_not_a_part_of_more_labels(features, tmp_path):
    flags = (["--labels-per-class", count] for count in ("3", "8"))
    few, more = (selection.choose_videos(read_index(features), "gen", arguments(features, tmp_path, *f)) for f in flags)
    assert len(few.train) == 18 and len(more.train) == 48 and paths(few.train) < paths(more.train)


def test_folds_overlap_or_leave_a_video_out(features):
    rows = [row for row in selection.usable(read_index(features), features) if row["generator"] != "WildScrape"]
    tests = [paths(row for row in selection.fold_splits(rows, k, 4, 0) if row["split"] == "test") for k in (1, 2, 3, 4)]
    assert sum(map(len, tests)) == len(set.union(*tests)) == len(rows)
    lone = [row | {"group": "one"} if row["generator"] == "SVD" else row for row in rows]
    for k in (1, 2, 3, 4):
        tested = {row["generator"] for row in selection.fold_splits(lone, k, 4, 0) if row["split"] == "test"}
        assert "SVD" not in tested  # a generator of one group has nothing to train on when it is tested


# ---------------------------------------------------------------- metrics


def test_metrics_differ_from_a_count_by_hand():
    probabilities = np.eye(3)[[0, 0, 0, 1, 1, 2]]
    metrics = score([0, 0, 1, 1, 1, 0], probabilities, ("Real", "a", "b"))
    assert metrics["accuracy"] == pytest.approx(4 / 6) and metrics["macro_accuracy"] == pytest.approx(2 / 3)
    assert metrics["confusion"] == [[2, 0, 1], [1, 2, 0], [0, 0, 0]]
    assert metrics["majority"] == 0.5 and metrics["uniform"] == pytest.approx(1 / 3)
    assert metrics["per_class"]["b"] == {"videos": 0, "accuracy": None}
    assert metrics["accuracy_interval"] == pytest.approx([0.3, 0.9032], abs=1e-3)  # Wilson, 4 of 6
    binary = score([0, 0, 1, 1], np.eye(2)[[0, 1, 1, 1]], ("Real", "Fake"))
    assert binary["precision"] == pytest.approx(2 / 3) and binary["recall"] == 1


# ---------------------------------------------------------------- the stages


def test_run_lacks_an_artifact_or_a_key(run):
    for level in ("bin", "gen"):
        metrics = json.loads((run / f"{level}.json").read_text())
        keys = "level classes videos accuracy accuracy_interval macro_accuracy macro_interval majority uniform"
        assert set(keys.split()) | {"per_class", "confusion", "excluded", "unseen", "recipe"} <= set(metrics)
        assert metrics["unseen"]["WildScrape"]["videos"] == 20
        with np.load(run / f"{level}_embeddings.npz", allow_pickle=False) as arrays:
            assert arrays["embedding"].shape == (140, 12)
            assert json.loads(str(arrays["recipe"]))["level"] == level
            assert arrays["probabilities"].shape == (140, len(metrics["classes"]))
            np.testing.assert_allclose(arrays["probabilities"].sum(axis=1), 1, atol=1e-5)
            right = arrays["probabilities"].argmax(1) == [
                [*metrics["classes"], "unseen"].index(name) for name in arrays["class"]
            ]
            assert right[arrays["split"] == "test"].mean() == pytest.approx(metrics["accuracy"])
        model = keras.saving.load_model(run / f"{level}.keras", compile=False)
        assert model.config["class_names"] == tuple(metrics["classes"])
        assert model.config["features"]["encoder"] == "invented" and model.config["recipe"]["level"] == level
        for name in (f"{level}_last.keras", f"{level}_confusion.png", f"{level}_tsne_generator.png"):
            assert (run / name).stat().st_size > 1000
        with open(run / f"{level}_history.csv", newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
        assert list((run / "logs" / level).rglob("events*")) and not (run / f"{level}_checkpoint.npz").exists()
    with open(run / "gen_history.csv", newline="") as file:
        row = next(csv.DictReader(file))
    logged = {"logits_loss", "embedding_loss", "embedding_mined_pairs", "spread", "val_macro_accuracy"}
    assert logged <= set(row)


def test_class_that_is_easy_to_see_is_not_learned(run):
    metrics = json.loads((run / "gen.json").read_text())
    assert metrics["accuracy_interval"][0] > metrics["majority"]


def test_second_run_trains_again_or_takes_other_settings(features, run, capsys):
    before = (run / "bin.keras").stat().st_mtime_ns
    stage_one.main(["--features", str(features), "--run", str(run), *SMALL])
    assert "up to date" in capsys.readouterr().out and (run / "bin.keras").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings.*seed.*--run"):
        stage_one.main(["--features", str(features), "--run", str(run), *SMALL, "--seed", "5"])


def test_other_features_under_the_same_name_count_as_the_same(features, run, tmp_path):
    copy = shutil.copytree(features, tmp_path / "copy")
    place = ["--run", str(run), *SMALL]
    stage_one.main(["--features", str(copy), *place])  # the name of the folder does not matter
    write_json(copy / "recipe.json", {"encoder": "other", "frames": 8, "tokens": 2, "dim": 12})
    with pytest.raises(ValueError, match="other settings.*features"):
        stage_one.main(["--features", str(copy), *place])
    write_json(copy / "recipe.json", {"encoder": "invented", "frames": 8, "tokens": 2, "dim": 12})
    rows = read_index(copy)
    write_index(copy / "index-1-of-1.csv", [row | {"group": "all"} for row in rows])
    with pytest.raises(ValueError, match="other settings.*index_sha256"):
        stage_one.main(["--features", str(copy), *place])


def test_test_features_leak_training_videos_or_fit_badly(features, tmp_path):
    args = arguments(features, tmp_path, "--test-features", str(features))
    videos = selection.choose_videos(read_index(features), "gen", args)
    assert not paths(videos.test) & paths(videos.train + videos.val) and len(videos.test) == 30
    other = shutil.copytree(features, tmp_path / "other")
    write_json(other / "recipe.json", {"encoder": "invented", "frames": 8, "tokens": 9, "dim": 12})
    with pytest.raises(ValueError, match="other features.*tokens"):
        selection.choose_videos(
            read_index(features), "gen", arguments(features, tmp_path, "--test-features", str(other))
        )


@pytest.mark.parametrize(
    "wrong",
    [["--batch-size", "0"], ["--epochs", "0"], ["--limit", "-1"], ["--dropout", "1.5"], ["--learning-rate", "-1"]]
    + [["--labels-per-class", "0"], ["--fold", "6/5"]],
)
def test_wrong_arguments_do_not_end_with_status_2(wrong):
    for stage in (stage_one, stage_two):
        with pytest.raises(SystemExit) as stopped:
            stage.get_args(wrong)
        assert stopped.value.code == 2


def test_resumed_run_differs_from_an_uninterrupted_one(features, run, tmp_path, monkeypatch):
    place = ["--features", str(features), "--run", str(tmp_path), "--level", "gen", "--init", str(run / "bin.keras")]

    class Interrupt(training.EpochEnd):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if epoch == 0:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "EpochEnd", Interrupt)
        stage_two.main([*place, *SMALL])
    assert (tmp_path / "gen_checkpoint.npz").exists() and not (tmp_path / "gen.json").exists()
    with pytest.raises(ValueError, match="other settings.*learning_rate"):
        stage_two.main([*place, *SMALL, "--learning-rate", "1e-2"])
    stage_two.main([*place, *SMALL])
    whole, resumed = (keras.saving.load_model(folder / "gen_last.keras", compile=False) for folder in (run, tmp_path))
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "gen_history.csv").read_text() == (run / "gen_history.csv").read_text()
    best, again = (np.load(folder / "gen_embeddings.npz")["probabilities"] for folder in (run, tmp_path))
    np.testing.assert_array_equal(best, again)


def test_run_of_an_older_version_is_refused():
    older = {"arguments": {"epochs": 3}}
    training.refuse_other_recipe("bin.json", older, {"arguments": {"epochs": 3, "temporal_blocks": 5}})
    with pytest.raises(ValueError, match=r"bin.json was made with other settings \(temporal_blocks\)"):
        training.refuse_other_recipe("bin.json", older, {"arguments": {"epochs": 3, "temporal_blocks": 2}})


def test_damaged_checkpoint_is_a_traceback(features, run, tmp_path):
    args = arguments(features, tmp_path)
    model = training.new_model(args, ("Real", "Fake"))
    model.compile(training.make_optimizer(args))
    model.optimizer.build(model.trainable_variables)
    for content in (
        b"junk",
        (run / "gen_embeddings.npz").read_bytes()[:500],
        (run / "gen_embeddings.npz").read_bytes(),
    ):
        (tmp_path / "bin_checkpoint.npz").write_bytes(content)
        with pytest.raises(ValueError, match="bin_checkpoint.npz: damaged checkpoint"):
            training.load_checkpoint(tmp_path / "bin_checkpoint.npz", model, {})


def test_collapse_or_a_loss_that_is_not_finite_goes_on():
    healthy = {"epoch": 1, "learning_rate": 1e-4, "loss": 1.0, "embedding_loss": 1.0, "spread": 0.3}
    collapsed = healthy | {"spread": 1e-6}
    training.check_training([healthy, collapsed])
    training.check_training([collapsed])
    with pytest.raises(ValueError, match="collapsed.*--normalize"):
        training.check_training([healthy, collapsed, collapsed])
    with pytest.raises(ValueError, match="not finite.*--learning-rate"):
        training.check_training([healthy | {"loss": float("nan")}])
    one_point = np.tile(np.random.default_rng(0).normal(size=12), (8, 1))
    assert training.spread(one_point) < 1e-9
    assert training.spread(np.random.default_rng(0).normal(size=(8, 12))) > 0.5


def test_stage_two_starts_from_a_model_that_does_not_fit(features, run, tmp_path):
    other = tmp_path / "other"
    random = np.random.default_rng(0)
    rows = [row | {"windows": 1} for row in read_index(features) if not row["error"]]
    for row in rows:
        tokens = random.normal(size=(1, 8, 3, 12))
        write_features(features_file(other, row["path"]), tokens, np.zeros((1, 8)), np.ones((1, 8)))
    write_index(other / "index-1-of-1.csv", rows)
    write_json(other / "recipe.json", {"encoder": "other", "frames": 8, "tokens": 3, "dim": 12})
    place = ["--features", str(other), "--run", str(tmp_path / "run"), "--level", "gen"]
    with pytest.raises(ValueError, match="tokens 2, here 3"):
        stage_two.main([*place, "--init", str(run / "bin.keras")])
    with pytest.raises(ValueError, match="5 temporal blocks; pass --temporal-blocks 5 or --init scratch"):
        stage_two.main([*place, "--init", str(run / "bin.keras"), "--temporal-blocks", "3"])
    with pytest.raises(ValueError, match="run 02 first"):
        stage_two.main(place)
    (tmp_path / "text.keras").write_text("not a model")
    with pytest.raises(ValueError, match="text.keras"):
        stage_two.main([*place, "--init", str(tmp_path / "text.keras")])
    with pytest.raises(ValueError, match="run 01"):
        stage_two.main(["--features", str(tmp_path / "nowhere"), "--init", "scratch"])


def test_interrupt_that_keras_passes_over_is_lost(features, tmp_path, monkeypatch):
    """Keras reads a batch's loss inside a bare except; here Ctrl-C arrives there, in the first batch."""
    utils = importlib.import_module("keras.src.callbacks.callback_list").python_utils
    read, batches = utils.pythonify_logs, []

    def interrupted(logs):
        if logs:
            batches.append(logs)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return read(logs)

    monkeypatch.setattr(utils, "pythonify_logs", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stage_one.main(["--features", str(features), "--run", str(tmp_path / "run"), *SMALL])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(batches) == 1 and not (tmp_path / "run" / "bin.json").exists()


def test_class_that_nobody_trains_lends_its_place_to_another(features, tmp_path):
    """Its videos are unseen, and what 03 calls them must not be the class that has its number among the trained."""
    rows = [row | {"split": "test"} if row["generator"] == "SVD" else row for row in read_index(features)]
    chosen = selection.choose_videos(rows, "gen", arguments(features, tmp_path, "--level", "gen", stage=stage_two))
    assert "SVD" not in chosen.classes and {row["generator"] for row in chosen.unseen} == {"SVD", "WildScrape"}
    assert not any("label" in row for row in chosen.unseen)


def test_windows_read_from_files_train_another_model_than_those_in_memory(features, tmp_path):
    """Also on JAX, where Keras's own workers would give batches late that they read before the first epoch."""
    found = []
    for memory in (2 << 30, 0):
        args = arguments(features, tmp_path / str(memory), *SMALL)
        (tmp_path / str(memory)).mkdir()
        videos = selection.choose_videos(read_index(features), "bin", args)
        model = training.new_model(args, videos.classes)
        model.compile(training.make_optimizer(args), {"logits": keras.losses.SparseCategoricalCrossentropy(True)})
        training.fit(model, videos, "bin", args, {}, lambda rows, memory=memory: Windows(rows, memory))
        found.append(model.get_weights())
    for held, mapped in zip(*found, strict=True):
        np.testing.assert_array_equal(held, mapped)
