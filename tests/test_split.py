"""The generator table, batches of windows, and who trains and who is tested."""

import shutil
from collections import Counter

import numpy as np
import pytest

from basics.artifacts import write_json
from basics.running import InputError
from common import WindowBatches
from tokens.dataset import (
    Row,
    Windows,
    features_file,
    features_recipe,
    map_tokens,
    read_index,
    usable,
    write_features,
)
from tokens.generators import LEVELS, class_index, class_names, load_generators, resolve_generator
from tokens.split import choose_videos, fold_splits, frame_keys, picture_digest

# ---------------------------------------------------------------- generator table


def test_classes_are_the_papers():
    assert [len(class_names(level)) for level in LEVELS] == [2, 3, 5, 15, 20]
    assert class_names("task") == ("Real", "T2V", "I2V")
    assert class_names("sd") == ("Real", "SD 2.1", "SD 1.5", "SD 1.4", "SDXL")
    assert class_index("sd", "Show_1") is None and class_index("task", "Pika") is None
    assert class_index("gen", "WildScrape") is None and class_index("bin", "WildScrape") == 1
    assert class_index("bin", "0_real") == 0
    with pytest.raises(InputError, match="unknown level"):
        class_names("model")


@pytest.mark.parametrize(
    ("folder", "generator"),
    [("show-1", "Show_1"), ("Morph", "MorphStudio"), ("I2VGEN_XL", "I2VGen-XL"), ("train_SVD", "SVD"), ("PIA", "SD")]
    + [("VideoCrafter1", "Crafter"), ("VideoCrafter2", "VideoCrafter"), ("Lavies", "Lavie"), ("Veo", None)],
)
def test_spellings_met_in_the_wild_are_resolved(folder, generator):
    assert resolve_generator(folder, load_generators()) == generator


def test_bad_generator_tables_raise(tmp_path):
    table = tmp_path / "generators.csv"
    table.write_text("name,aliases,task,sd_version,team\nReal,,Real,Real,Real\nA,b-1,T2V,X,Y\nB_1,,T2V,X,Y\n")
    with pytest.raises(InputError, match="share the name"):
        load_generators(table)
    table.write_text("name,task\nReal,Real\n")
    with pytest.raises(InputError, match="missing column"):
        load_generators(table)


# ---------------------------------------------------------------- features and batches


def window_batches(features, **options):
    rows = usable(read_index(features), features)
    windows = Windows(rows)
    labels = np.array([class_index("bin", row.generator) for row in rows])[windows.video]
    return WindowBatches(windows, labels, **({"batch_size": 16} | options))


def test_mapped_windows_equal_numpys_reading(features):
    path = features_file(features, "SVD/2.mp4")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(map_tokens(path), arrays["tokens"])
    rows = usable(read_index(features), features)
    np.testing.assert_array_equal(Windows(rows, memory=0)[[5, 0, 70]], Windows(rows)[[5, 0, 70]])


def test_batches_depend_on_seed_epoch_and_step_alone(features):
    one, other = window_batches(features), window_batches(features)
    first, other.epoch = one[3][0], 1
    one.on_epoch_end()
    np.testing.assert_array_equal(one[3][0], other[3][0])
    assert not np.array_equal(first, one[3][0])
    assert not np.array_equal(first, window_batches(features, seed=1)[3][0])


def test_natural_epoch_shows_each_window_once(features):
    batches = window_batches(features)
    seen = np.concatenate([batches.chosen(step) for step in range(len(batches))])
    assert len(set(seen.tolist())) == len(seen) == len(batches.windows) // 16 * 16


def test_epochs_of_other_lengths_are_the_same_batches_in_a_row(features):
    """As many steps in all, whatever part of them an epoch is, show the windows in the same order."""
    short, passes = window_batches(features, steps=3), window_batches(features)
    assert len(short) == 3 and len(passes) > 3
    for number in range(2 * len(passes)):
        (passes.epoch, whole), (short.epoch, part) = divmod(number, len(passes)), divmod(number, 3)
        np.testing.assert_array_equal(passes.chosen(whole), short.chosen(part))


def test_balanced_batch_deals_equally_and_repeats_late(features):
    rows = usable(read_index(features), features)
    windows = Windows(rows)
    generators = sorted({row.generator for row in rows})
    labels = np.array([generators.index(row.generator) for row in rows])[windows.video]
    batches = WindowBatches(windows, labels, batch_size=65, batching="balanced")
    chosen = batches.chosen(2)
    assert sorted(np.bincount(labels[chosen])) == [9, 9, 9, 9, 9, 10, 10]
    assert len(set(windows.video[chosen].tolist())) == 65  # 20 videos a class: nobody comes twice
    small = WindowBatches(windows, np.minimum(labels, 1), batch_size=100, batching="balanced").chosen(0)
    of_first = windows.video[small[np.minimum(labels, 1)[small] == 0]]
    windows_of_class = np.count_nonzero(labels == 0)
    assert len(of_first) == 50 > windows_of_class and len(set(of_first.tolist())) == 20
    assert set(np.flatnonzero(labels == 0)) <= set(small.tolist())  # all windows before one comes again


def test_balanced_batch_draws_as_many_numbers_as_it_holds(features, monkeypatch):
    """No permutation of all windows at each step: of millions it would take longer than the step."""
    batches, drawn = window_batches(features, batching="balanced"), []
    random = np.random.default_rng(0)
    kind = type("Random", (), {name: getattr(random, name) for name in ("choice", "integers")})
    kind.permutation = lambda values: drawn.append(len(values)) or random.permutation(values)
    assert len(batches.balanced_batch(kind)) == 16 and drawn == [2]


def test_damaged_features_raise_naming_the_file(features, tmp_path):
    np.savez(tmp_path / "renamed.npz", token=np.zeros((1, 8, 2, 12)))
    with pytest.raises(InputError, match=r"renamed.npz.*run 01 again"):
        map_tokens(tmp_path / "renamed.npz")
    np.savez_compressed(tmp_path / "small.npz", tokens=np.zeros((1, 8, 2, 12)))
    with pytest.raises(InputError, match="compressed"):
        map_tokens(tmp_path / "small.npz")
    np.savez(tmp_path / "wide.npz", tokens=np.zeros((1, 8, 2, 12)))
    with pytest.raises(InputError, match="wide.npz.*float64, not float16.*run 01 again"):
        map_tokens(tmp_path / "wide.npz")
    (tmp_path / "cut.npz").write_bytes(features_file(features, "SVD/2.mp4").read_bytes()[:300])
    with pytest.raises(InputError, match="cut.npz"):
        map_tokens(tmp_path / "cut.npz")
    (tmp_path / "index-1-of-1.csv").write_text("path,generator\na,b\n")
    with pytest.raises(InputError, match="missing column"):
        read_index(tmp_path)
    write_json(tmp_path / "recipe.json", {"frames": 8, "token": 2})
    with pytest.raises(InputError, match="recipe.json: .*lacks dim, tokens"):
        features_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text("[1")
    with pytest.raises(InputError, match="recipe.json: not valid JSON"):
        features_recipe(tmp_path)


def test_tokens_that_are_not_finite_raise(tmp_path):
    write_json(tmp_path / "recipe.json", {"frames": 8, "tokens": 2, "dim": 12})
    write_features(features_file(tmp_path, "Real/a"), np.full((1, 8, 2, 12), np.nan), np.zeros((1, 8)), np.ones((1, 8)))
    with pytest.raises(InputError, match=r"a\.npz: tokens are not finite"):
        Windows([Row("Real/a", "Real", "Real/a", features=tmp_path, windows=1)])


# ---------------------------------------------------------------- copies


def test_copies_have_a_key_in_common_and_clips_with_a_shared_beginning_have_none():
    """By counting on random digests: a copy has another picture at one sample in 30, as rounded times make it."""
    random = np.random.default_rng(0)
    found = {"copies": 0, "same": 0, "beginning": 0, "others": 0}
    for _ in range(200):
        one = random.bytes(8 * 80)
        pictures = [one[8 * i : 8 * i + 8] for i in range(80)]
        keys = set(frame_keys(pictures))
        changed = [random.bytes(8) if random.random() < 1 / 30 else picture for picture in pictures]
        begun = pictures[:8] + [random.bytes(8) for _ in range(72)]
        found["copies"] += bool(keys & set(frame_keys(changed)))
        found["same"] += keys == set(frame_keys(pictures[::-1]))
        found["beginning"] += bool(keys & set(frame_keys(begun)))
        found["others"] += bool(keys & set(frame_keys(begun[8:])))
    assert found == {"copies": 200, "same": 200, "beginning": 0, "others": 0}
    black, white = (picture_digest(np.full((9, 9, 3), grey, np.uint8)) for grey in (0, 255))
    assert frame_keys({black}) != frame_keys({white}) != frame_keys({black, white})
    assert picture_digest(np.zeros((8, 9, 3), np.uint8)) != black


# ---------------------------------------------------------------- who trains and who is tested


TABLE = load_generators()


def paths(rows):
    return {row.path for row in rows}


def chosen(features, level, **options):
    return choose_videos(read_index(features), level, features, TABLE, **options)


def test_roles_follow_the_recorded_split(features):
    videos = chosen(features, "gen")
    assert [len(videos.train), len(videos.val), len(videos.test)] == [78, 12, 30]
    assert not paths(videos.train) & paths(videos.test)
    assert {row.generator for row in videos.unseen} == {"WildScrape"}
    last = chosen(features, "gen", train_on_val=True)
    assert len(last.train) == 90 and not last.val


def test_unknown_and_mixed_generators_are_left_out(features):
    videos = chosen(features, "task")
    assert videos.excluded == {"Pika": 20} and "Pika" not in {row.generator for row in videos.train}
    assert videos.classes == ("Real", "T2V", "I2V")


def test_held_out_generator_is_tested_on_all_its_videos(features):
    videos = chosen(features, "bin", train_generators=["SVD", "pika"], test_generators=["Latte"])
    assert {row.generator for row in videos.train} == {"Real", "SVD", "Pika"}
    assert sum(row.generator == "Latte" for row in videos.test) == 20
    assert {row.generator for row in videos.test} == {"Real", "Latte"}
    with pytest.raises(InputError, match="WildScrape: not in the generator table; add .*: WildScrape,,Unknown,Unknown"):
        chosen(features, "task", train_generators=["WildScrape"])
    with pytest.raises(InputError, match="no video of Sora"):
        chosen(features, "bin", train_generators=["Sora"])


def test_tested_videos_share_no_group_with_training(features):
    rows = [row._replace(group=row.path.split("/")[1]) for row in read_index(features)]
    sides = dict(train_generators=["SVD"], test_generators=["Latte"])
    videos = choose_videos(rows, "bin", features, TABLE, **sides)
    assert sum(row.generator == "Latte" for row in videos.test) == 5


def test_few_labels_are_a_part_of_more_labels(features):
    few, more = (chosen(features, "gen", labels_per_class=count, train_on_val=True) for count in (3, 8))
    assert len(few.train) == 18 and len(more.train) == 48 and paths(few.train) < paths(more.train)


@pytest.mark.parametrize(("labels", "train", "val"), [(1, 1, 0), (3, 2, 1), (12, 11, 1), (20, 13, 2)])
def test_label_budget_counts_train_and_val(features, labels, train, val):
    """13 videos of a class are there to train and 2 to validate: a tenth of the labels, or one, is val's."""
    split = chosen(features, "gen", labels_per_class=labels)
    for role, count in (("train", train), ("val", val)):
        assert np.bincount([row.label for row in getattr(split, role)], minlength=6).tolist() == [count] * 6


def test_labels_that_val_cannot_take_are_left_to_train(features):
    rows = [row for row in read_index(features) if row.generator != "SVD" or row.split != "val"]
    split = choose_videos(rows, "gen", features, TABLE, labels_per_class=10)
    counts = Counter(row.label for row in split.train)
    assert counts.pop(split.classes.index("SVD")) == 10 and set(counts.values()) == {9}


def test_folds_test_each_video_once(features):
    rows = [row for row in usable(read_index(features), features) if row.generator != "WildScrape"]
    tests = [paths(row for row in fold_splits(rows, k, 4, 0) if row.split == "test") for k in (1, 2, 3, 4)]
    assert sum(map(len, tests)) == len(set.union(*tests)) == len(rows)
    lone = [row._replace(group="one") if row.generator == "SVD" else row for row in rows]
    for k in (1, 2, 3, 4):
        tested = {row.generator for row in fold_splits(lone, k, 4, 0) if row.split == "test"}
        assert "SVD" not in tested  # a generator of one group has nothing to train on when it is tested


def test_other_test_features_are_apart_from_training_and_made_alike(features, tmp_path):
    videos = chosen(features, "gen", test_features=features)
    assert not paths(videos.test) & paths(videos.train + videos.val) and len(videos.test) == 30
    other = shutil.copytree(features, tmp_path / "other")
    write_json(other / "recipe.json", {"encoder": "invented", "frames": 8, "tokens": 9, "dim": 12})
    with pytest.raises(InputError, match="other features.*tokens"):
        chosen(features, "gen", test_features=other)


def test_videos_of_a_class_that_nobody_trains_are_unseen(features):
    """Its videos are unseen, and what 03 calls them must not be the class that has its number among the trained."""
    rows = [row._replace(split="test") if row.generator == "SVD" else row for row in read_index(features)]
    videos = choose_videos(rows, "gen", features, TABLE)
    assert "SVD" not in videos.classes and {row.generator for row in videos.unseen} == {"SVD", "WildScrape"}
    assert not any(row.label is not None for row in videos.unseen)
