"""Temporal Attention Signatures: maps against plain loops, identification on planted maps, the stage and bad input."""

import itertools
import json
import shutil

import keras
import numpy as np
import pytest
from small import RECIPE, untrained_run
from stages import module, stage

from basics.artifacts import read_arrays, write_json
from basics.figures import plt
from basics.running import InputError
from basics.statistics import resample_groups
from common import build_saga
from experiments import tsigs as experiment
from tokens.dataset import Row, Windows, features_file, read_index, write_features, write_index
from training import signatures

tsigs = module("04_tsigs")
QUICK = ["--repeats", "5", "--batch-size", "16"]


# ---------------------------------------------------------------- a tiny run


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Real, two generators of the table and one outside it, each loud at a frame of its own. Every third clip ends in
    a padded window, one of each has no other; two clips share a group.
    """
    folder = tmp_path_factory.mktemp("tsigs_features")
    random, rows = np.random.default_rng(0), []
    for mark, generator in enumerate(["Real", "SVD", "Pika", "WildScrape"]):
        for i in range(24):
            count = 1 + i % 3
            tokens = random.normal(size=(count, 8, 2, 12))
            tokens[:, 2 * mark] += 3 * np.arange(12)
            valid = np.ones((count, 8), bool)
            if i % 3 == 0:
                valid[-1, 5:] = False
            if i % 3 == 2:
                valid[1, 7] = False
            path = f"{generator}/{i}.mp4"
            write_features(features_file(folder, path), tokens, np.zeros((count, 8)), valid)
            split = "train" if i >= 14 else "val" if i >= 12 else "test"
            rows.append(Row(path, generator, f"{generator}{i // 2}", split=split, windows=count, source=path))
    write_index(folder / "index-1-of-1.csv", rows)
    write_json(folder / "recipe.json", RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    return untrained_run(features, tmp_path_factory.mktemp("tsigs_run"), seed=1)


@pytest.fixture(scope="module")
def strata(features, tmp_path_factory):
    """A CSV of two strata that leaves SVD out and names two videos that are nowhere."""
    path = tmp_path_factory.mktemp("strata") / "strata.csv"
    lines = [f"{row.path},{'odd' if len(row.path) % 2 else 'even'}" for row in read_index(features)]
    lines = [line for line in lines if not line.startswith("SVD")] + ["Real/gone.mp4,odd", "Real/lost.mp4,odd"]
    path.write_text("\n".join(["path,stratum", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def done(features, run, strata):
    """The metrics and arrays of the stage, with strata and controls."""
    metrics = call(features, run, "--strata", str(strata), "--controls")
    with np.load(run / "gen_tsigs.npz", allow_pickle=False) as arrays:
        return metrics, {key: arrays[key] for key in arrays}


def call(features, run, *more):
    return stage("04_tsigs", "--features", features, "--run", run, *QUICK, *more)


# ---------------------------------------------------------------- maps


def test_maps_are_means_over_heads_and_full_windows(features, run, done):
    metrics, arrays = done
    model = keras.saving.load_model(run / "gen.keras", compile=False)
    per_class = {}
    for video, name, ours in zip(arrays["video"].tolist(), arrays["class"].tolist(), arrays["maps"], strict=True):
        with np.load(features_file(features, video)) as clip:
            good = [w for w in range(len(clip["valid"])) if min(clip["valid"][w])]
            tokens = np.float32(clip["tokens"])
        padded = np.concatenate([tokens[good], np.zeros((3 - len(good), 8, 2, 12), "float32")])
        attention = np.asarray(model.predict_on_batch(padded)["attention"])[: len(good)]  # (S, H, L, L)
        by_head = sum(attention) / len(good)
        np.testing.assert_allclose(ours, sum(by_head) / 12, atol=1e-6)
        per_class.setdefault(name, []).append(by_head)
    for name, raw, count in zip(arrays["classes"].tolist(), arrays["signatures"], arrays["clips"], strict=True):
        np.testing.assert_allclose(raw, sum(per_class[name]) / len(per_class[name]), atol=1e-6)
        assert count == len(per_class[name]) == metrics["per_class"][name]["clips"]
    np.testing.assert_allclose(arrays["signatures"].sum(axis=-1), 1, atol=1e-5)  # a row is a distribution over frames


class Recorder:
    """Stands for a model: attention (B, 1, L, L) whose every row is what the frames' first numbers say."""

    config = {"frames": 4, "heads": 1}

    def predict_on_batch(self, tokens):
        self.shape = tokens.shape
        return {"attention": np.repeat(tokens[:, None, None, :, 0, 0], 4, axis=2)}


def test_maps_do_not_depend_on_batches_and_follow_the_order_of_frames(tmp_path):
    random, rows = np.random.default_rng(0), []
    write_json(tmp_path / "recipe.json", {"frames": 4, "tokens": 1, "dim": 1})
    clips = [random.normal(size=(count, 4, 1, 1)).astype("float16") for count in (1, 3, 2)]
    for i, tokens in enumerate(clips):
        write_features(features_file(tmp_path, f"a/{i}"), tokens, np.zeros((len(tokens), 4)), np.ones((len(tokens), 4)))
        rows.append(Row(f"a/{i}", "a", f"a/{i}", features=tmp_path, windows=len(tokens)))
    windows, model, orders = Windows(rows), Recorder(), np.array([[1, 0, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]])
    full_windows = np.array([0, 1, 3, 4, 5])  # not the middle window of the second clip
    maps, sums = tsigs.attention_maps(model, windows, full_windows, np.array([0, -1, 1]), 2, orders=orders)
    assert model.shape == (2, 4, 1, 1)  # the last batch is filled up
    means = [clips[0][0], (clips[1][0] + clips[1][2]) / 2, (clips[2][0] + clips[2][1]) / 2]
    for i in range(3):
        for row, column in itertools.product(range(4), repeat=2):
            assert maps[i, row, column] == pytest.approx(float(means[i][orders[i, column], 0, 0]), abs=2e-3)
    np.testing.assert_allclose(sums[:, 0], maps[[0, 2]], atol=1e-6)  # label -1 is in no class


def test_clips_without_a_full_window_are_counted(done):
    metrics, arrays = done
    for name, entry in metrics["per_class"].items():
        selected = 24 if name == "WildScrape" else 14
        padded = len(range(0, selected, 3))  # the only window of every third clip is padded
        assert (entry["clips"], entry["clips_without_full_window"]) == (selected - padded, padded)
        assert entry["seen"] == (selected == 14)
        assert entry["groups"] == len(set(arrays["group"][arrays["class"] == name]))
    assert "Real/0.mp4" not in arrays["video"] and arrays["seen"].tolist() == [True, True, True, False]


def test_train_clips_serve_the_grand_mean_alone(features, done):
    metrics, arrays = done
    assert set(arrays["split"].tolist()) == {"val", "test", "unseen"}
    trained = {row.path for row in read_index(features) if row.split == "train"}
    assert not [v for v in arrays["video"] if v in trained and not v.startswith("Wild")]
    assert metrics["grand_mean_clips"] > 0 and arrays["grand_mean"].shape == (8, 8)


# ---------------------------------------------------------------- who is compared


def random_groups(seed=0):
    random = np.random.default_rng(seed)
    return random.integers(3, size=60), random.integers(12, size=60), random


def test_halves_share_no_group_and_keep_all_clips():
    labels, groups, random = random_groups()
    for _ in range(20):
        (sides,) = signatures.split_groups_in_halves(labels, groups, random)
        for label, (first, second) in enumerate(sides):
            assert not set(groups[first]) & set(groups[second])
            assert sorted([*first, *second]) == [i for i in range(60) if labels[i] == label]
            assert 0 <= len(set(groups[first])) - len(set(groups[second])) <= 1


def test_permuted_classes_keep_groups_whole_and_mix_labels():
    labels, groups, random = random_groups()
    sizes = sorted(len({groups[i] for i in range(60) if labels[i] == label}) for label in range(3))
    mixed = 0
    for _ in range(20):
        (sides,) = signatures.permuted_halves(labels, groups, random)
        assert sorted(i for pair in sides for half in pair for i in half) == list(range(60))
        units = [{(labels[i], groups[i]) for half in pair for i in half} for pair in sides]
        assert sorted(map(len, units)) == sizes and not units[0] & units[1]
        assert not any(set(groups[first]) & set(groups[second]) for first, second in sides)
        mixed += any(len({label for label, _ in own}) > 1 for own in units)
    assert mixed >= 19


def test_compared_strata_share_no_group():
    labels, groups, random = random_groups()
    strata = np.array(["a", "b", "c"])[random.integers(3, size=60)]
    comparisons = signatures.across_strata(labels, groups, random, strata)
    assert len(comparisons) == 6  # ordered pairs
    met = set()
    for sides in comparisons:
        for label, (first, second) in enumerate(sides):
            assert not set(groups[first]) & set(groups[second])
            assert set(labels[first]) | set(labels[second]) <= {label}
        pair = [{strata[i] for sides_of_class in sides for i in sides_of_class[k]} for k in (0, 1)]
        assert len(pair[0]) == len(pair[1]) == 1
        met.add((*pair[0], *pair[1]))
    assert met == set(itertools.permutations("abc", 2))


def test_bootstrap_draws_whole_groups():
    groups = np.array([7, 7, 7, 3, 3, 9, 5, 5])
    random, seen = np.random.default_rng(0), set()
    for _ in range(50):
        clips = np.arange(6)
        drawn = np.repeat(clips, resample_groups(groups[clips], random)).tolist()
        times = {group: {drawn.count(i) for i in range(6) if groups[i] == group} for group in (7, 3, 9)}
        assert all(len(own) == 1 for own in times.values()) and not {6, 7} & set(drawn)
        assert sum(own.pop() for own in times.values()) == 3
        seen.add(tuple(sorted(drawn)))
    assert len(seen) > 5
    assert not len(resample_groups(groups[:0], random))


# ---------------------------------------------------------------- what is measured


def planted(strength, classes=4, clips=60, noise=0.3, common=1.0, seed=0):
    """Maps (V, 3, 3) of a pattern common to all, a class's own and noise; labels, groups of two clips."""
    random = np.random.default_rng(seed)
    shared, own = random.normal(size=(3, 3)), random.normal(size=(classes, 3, 3))
    labels = np.repeat(np.arange(classes), clips)
    maps = common * shared + strength * own[labels] + noise * random.normal(size=(len(labels), 3, 3))
    return maps.astype("float32"), common * shared, labels, np.arange(len(labels)) // 2


def by_count(maps, grand_mean, labels, groups, sides=signatures.split_groups_in_halves, repeats=60):
    return {row["clips"]: row for row in signatures.identify(maps, grand_mean, labels, groups, sides, repeats, 0)}


def test_comparison_equals_one_by_loops():
    random = np.random.default_rng(0)
    first, second, mean = random.normal(size=(5, 3, 3)), random.normal(size=(5, 3, 3)), random.normal(size=(3, 3))
    second[:3] = first[:3] + 0.3 * second[:3]
    correct, related = 0, {"own": [], "other": [], "own raw": [], "other raw": []}
    for i in range(5):
        distances = []
        for j in range(5):
            distances.append(sum((first[i, a, b] - second[j, a, b]) ** 2 for a in range(3) for b in range(3)))
            kind = "own" if i == j else "other"
            related[kind].append(np.corrcoef((first[i] - mean).ravel(), (second[j] - mean).ravel())[0, 1])
            related[f"{kind} raw"].append(np.corrcoef(first[i].ravel(), second[j].ravel())[0, 1])
        correct += distances.index(min(distances)) == i
    expected = [correct / 5, *(sum(values) / len(values) for values in related.values()), 5, 1 / 5]
    np.testing.assert_allclose(signatures.compare_signatures(first, second, mean), expected)
    assert np.isfinite(
        signatures.compare_signatures(np.ones((2, 3, 3)), np.ones((2, 3, 3)), mean)
    ).all()  # constant maps


def test_planted_signature_is_identified():
    table = by_count(*planted(strength=0.3))
    assert list(table) == [1, 5, 20]  # halves of 30
    accuracy = [row["accuracy"] for row in table.values()]
    assert accuracy == sorted(accuracy) and accuracy[-1] == 1 and accuracy[0] < 0.8
    assert table[20]["chance"] == 0.25 and table[20]["classes"] == 4 and table[20]["repeats"] == 60
    low, high = table[5]["accuracy_interval"]
    assert 0.25 < low <= table[5]["accuracy"] <= high <= 1


def test_permuted_labels_and_equal_classes_stay_at_chance():
    for table in (by_count(*planted(0.3), signatures.permuted_halves, 200), by_count(*planted(0.0), repeats=200)):
        for row in table.values():
            assert row["accuracy"] == pytest.approx(0.25, abs=0.08)
            assert row["accuracy_interval"][0] <= 0.25 <= row["accuracy_interval"][1]


def test_clips_of_one_group_do_not_identify_equal_classes():
    maps, mean, labels, _ = planted(0.0, noise=0.0)
    groups = np.arange(len(labels)) // 6
    maps = maps + np.random.default_rng(1).normal(size=(groups.max() + 1, 3, 3))[groups]  # a group is one scene
    row = by_count(maps, mean, labels, groups)[5]
    assert row["accuracy"] == pytest.approx(0.25, abs=0.1)


def test_pattern_common_to_all_is_no_signature():
    same = by_count(*planted(0.0, common=5.0))[20]
    assert same["raw_within"] > 0.95 and same["raw_between"] > 0.95  # raw correlation says little
    assert abs(same["within"]) < 0.2 and abs(same["between"]) < 0.2
    own = by_count(*planted(0.5, common=5.0))[20]
    assert own["raw_between"] > 0.9 and own["within"] > 0.9 and own["between"] < 0.5


def test_class_of_too_few_clips_leaves_the_comparison():
    maps, mean, labels, groups = planted(0.5)
    few = np.flatnonzero((labels < 2) | (np.arange(len(labels)) % 60 < 6))  # two classes keep six clips
    table = by_count(maps[few], mean, labels[few], groups[few])
    assert {count: row["classes"] for count, row in table.items()} == {1: 4, 5: 2, 20: 2}
    assert [row["chance"] for row in table.values()] == [0.25, 0.5, 0.5]
    assert by_count(maps[labels == 1], mean, labels[labels == 1], groups[labels == 1]) == {}


def test_intervals_widen_with_fewer_groups():
    maps, mean, labels, groups = planted(0.5, noise=0.0)
    scene = np.random.default_rng(1).normal(size=(len(maps), 3, 3))
    many = by_count(maps + scene[groups], mean, labels, groups, repeats=200)[20]
    few = by_count(maps + scene[groups // 6], mean, labels, groups // 6, repeats=200)[20]
    width = [np.ptp(row["within_interval"]) for row in (many, few)]
    assert width[1] > 1.3 * width[0]


# ---------------------------------------------------------------- the stage


def test_artifacts_have_all_keys_and_figures_show_something(run, done):
    metrics, arrays = done
    assert metrics == json.loads((run / "gen_tsigs.json").read_text())
    assert set(metrics["tables"]) == {"trained", "frames shuffled", "untrained", "labels permuted", "across strata"}
    for name, table in metrics["tables"].items():
        assert [row["clips"] for row in table][:1] == [1], name
        for row in table:
            assert row["accuracy_interval"][0] <= row["accuracy_interval"][1] and 0 <= row["accuracy"] <= 1
    assert arrays["signatures"].shape == (4, 12, 8, 8) and arrays["maps"].dtype == np.float32
    assert len({len(arrays[key]) for key in ("maps", "video", "generator", "class", "split", "group", "stratum")}) == 1
    assert json.loads(str(arrays["recipe"]))["arguments"]["level"] == "gen"
    for ending in ("", "_difference", "_unseen", "_strata"):
        image = plt.imread(run / f"gen_tsigs{ending}.png")
        assert min(image.shape[:2]) > 100 and image[..., :3].std() > 0.05


def test_videos_that_strata_lack_or_invent_are_counted(features, strata, done, capsys):
    metrics, arrays = done
    rows = read_index(features)
    names, source = signatures.name_strata(rows, rows, strata)
    assert source == metrics["strata"]["source"] == "strata.csv" and "2 videos" in capsys.readouterr().out
    assert set(names) == {"odd", "even", "none"}
    assert set(arrays["stratum"][arrays["class"] == "SVD"]) == {"none"}
    assert metrics["strata"]["clips"]["none"] == 9 and set(metrics["strata"]["clips"]) == {"odd", "even", "none"}
    assert all(row["classes"] <= 3 for row in metrics["tables"]["across strata"])


def test_code_of_measuring_is_in_the_recipe_and_that_of_drawing_is_not(done):
    code = done[0]["recipe"]["code"]
    assert {"04_tsigs.py:attention_maps", "training/signatures.py:compare_signatures", "common.py:SAGA"} <= code.keys()
    assert not [name for name in code if "draw_" in name or "print_" in name]


def test_second_run_is_up_to_date_and_other_settings_raise(features, run, strata, done, tmp_path, capsys):
    before = (run / "gen_tsigs.npz").stat().st_mtime_ns
    given = ["--controls", "--strata"]
    assert call(features, run, *given, str(shutil.copy(strata, tmp_path))) == done[0]
    assert "up to date" in capsys.readouterr().out and (run / "gen_tsigs.npz").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="other settings.*strata_sha256"):
        call(features, run, *given, "kmeans")
    with pytest.raises(InputError, match="other settings.*controls"):
        call(features, run, "--strata", str(strata))
    with pytest.raises(InputError, match="other settings.*seed"):
        call(features, run, *given, str(strata), "--seed", "3")


def test_plain_run_leaves_out_controls_and_is_the_same_otherwise(features, run, done, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("gen_tsigs*"))
    (copy / "gen_tsigs_strata.png").touch()  # of an earlier run
    metrics, arrays = call(features, copy), read_arrays(copy / "gen_tsigs.npz")
    assert metrics["tables"] == {"trained": done[0]["tables"]["trained"]}
    assert metrics["strata"] == {"source": None, "clips": {"none": metrics["videos"]}}
    assert (copy / "gen_tsigs_unseen.png").exists() and not (copy / "gen_tsigs_strata.png").exists()
    for key, values in arrays.items():
        if key not in ("recipe", "stratum"):
            np.testing.assert_array_equal(values, done[1][key])
    more = {f"{name}_{what}" for name in ("frames_shuffled", "untrained") for what in ("maps", "grand_mean")}
    assert done[1].keys() - arrays.keys() == more


def test_artifact_has_the_maps_of_controls(features, run, done):
    metrics, arrays = done
    model = keras.saving.load_model(run / "gen.keras", compile=False)
    place = arrays["video"].tolist().index("Pika/1.mp4")
    with np.load(features_file(features, "Pika/1.mp4")) as clip:
        tokens = np.float32(clip["tokens"])  # (2, L, T, D), no padding
    count = metrics["videos"] + metrics["grand_mean_clips"]
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(8), (count, 1)), axis=1)  # one is that of the clip
    attention = np.asarray(model.predict_on_batch(np.concatenate([tokens[:, order] for order in orders]))["attention"])
    maps = attention.reshape(count, 2, 12, 8, 8).mean(axis=(1, 2))
    assert np.abs(maps - arrays["frames_shuffled_maps"][place]).max(axis=(1, 2)).min() < 1e-6
    keras.utils.set_random_seed(0)
    fresh = build_saga(**model.config)
    attention = np.asarray(fresh.predict_on_batch(tokens)["attention"])
    np.testing.assert_allclose(arrays["untrained_maps"][place], attention.mean(axis=(0, 1)), atol=1e-6)
    labels = np.array([arrays["classes"].tolist().index(name) for name in arrays["class"]])
    groups = np.unique(arrays["group"], return_inverse=True)[1]
    for name in ("frames_shuffled", "untrained"):
        maps, grand_mean = arrays[f"{name}_maps"], arrays[f"{name}_grand_mean"]
        np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-5)
        table = signatures.identify(maps, grand_mean, labels, groups, signatures.split_groups_in_halves, 5, 0)
        assert table == metrics["tables"][name.replace("_", " ")]


def test_stand_in_for_content_is_named_as_one(features, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("gen_tsigs*"))
    metrics = call(features, copy, "--controls", "--strata", "kmeans", "--splits", "train,val,test", "--limit", "6")
    assert metrics["strata"]["source"] == "k-means of the mean token, a stand-in for content"
    assert set(metrics["strata"]["clips"]) == {"cluster 1", "cluster 2", "cluster 3"}
    assert "across strata" in metrics["tables"] and set(metrics["splits"]) == {"train", "val", "test"}
    assert (copy / "gen_tsigs_strata.png").exists() and not (copy / "gen_tsigs_unseen.png").exists()
    assert metrics["used"] < metrics["videos"]  # train clips of the grand mean are drawn but not matched


def test_strata_of_the_index_are_drawn_without_a_flag(features, run, tmp_path):
    copy = shutil.copytree(features, tmp_path / "copy")
    free = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("gen_tsigs*"))
    rows = [row._replace(stratum="cats" if i % 2 else "dogs") for i, row in enumerate(read_index(copy))]
    write_index(copy / "index-1-of-1.csv", rows)
    metrics = call(copy, free)
    assert metrics["strata"]["source"] == "the index" and set(metrics["strata"]["clips"]) == {"cats", "dogs"}
    assert set(metrics["tables"]) == {"trained"} and (free / "gen_tsigs_strata.png").exists()


# ---------------------------------------------------------------- experiments


def test_experiments_measure_pooled_folds_on_the_artifacts(features, run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("gen_tsigs*"))
    metrics = call(features, copy, "--splits", "train,test,unseen", "--controls")
    runs = [(copy, metrics, read_arrays(copy / "gen_tsigs.npz"))]
    monkeypatch.setattr(experiment, "REPEATS", 5)
    monkeypatch.setattr(experiment, "stage", None)  # no model runs again
    assert experiment.signature_tables(runs, seed=0) == metrics["tables"]
    (_, _, arrays), test = runs[0], runs[0][2]["split"] == "test"
    half = np.isin(arrays["group"], np.unique(arrays["group"])[::2])
    folds = [(None, None, {**arrays, "split": np.where(own & test, "test", "train")}) for own in (half, ~half)]
    pooled = experiment.signature_tables(folds, seed=0)
    assert list(pooled) == ["trained", "frames shuffled", "untrained", "labels permuted"]
    order = np.concatenate([np.flatnonzero(half & test), np.flatnonzero(~half & test)])
    labels, groups = (np.unique(arrays[key][order], return_inverse=True)[1] for key in ("class", "group"))
    for name, key in {"trained": "", "frames shuffled": "frames_shuffled_", "untrained": "untrained_"}.items():
        maps = arrays[f"{key}maps"][order] - arrays[f"{key}grand_mean"]
        table = signatures.identify(
            maps, np.zeros((8, 8)), labels, groups, signatures.split_groups_in_halves, repeats=5, seed=0
        )
        assert pooled[name] == table and table


# ---------------------------------------------------------------- bad input


def test_wrong_arguments_end_with_status_2():
    for wrong in (["--splits", "test,all"], ["--splits", ""], ["--level", "model"], ["--repeats", "0"]):
        with pytest.raises(SystemExit) as stopped:
            tsigs.get_args(wrong)
        assert stopped.value.code == 2
    assert tsigs.get_args(["--splits", "unseen, test"]).splits == ["test", "unseen"]


def fails(features, run, *more):
    with pytest.raises(InputError) as raised:  # noqa: PT011
        call(features, run, *more)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_missing_and_damaged_runs_raise_in_one_line(features, run, tmp_path):
    assert "gen.keras is missing; run 03" in fails(features, tmp_path / "nowhere")
    assert "bin.keras is missing; run 02" in fails(features, run, "--level", "bin")
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("gen_tsigs*"))
    whole = (copy / "gen_embeddings.npz").read_bytes()
    for content in (b"junk", whole[:3000]):
        (copy / "gen_embeddings.npz").write_bytes(content)
        assert "gen_embeddings.npz: damaged" in fails(features, copy)
    np.savez(copy / "gen_embeddings.npz", video=np.array(["Real/1.mp4"]))
    assert "gen_embeddings.npz: damaged" in fails(features, copy)
    (copy / "gen_embeddings.npz").unlink()
    assert "gen_embeddings.npz is missing; run 03" in fails(features, copy)
    (copy / "gen_embeddings.npz").write_bytes(whole)
    for content in (b"junk", (run / "gen.keras").read_bytes()[:3000]):
        (copy / "gen.keras").write_bytes(content)
        assert "gen.keras: cannot be read as a model" in fails(features, copy)
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(copy / "gen.keras")
    assert "is not a model of 03_attribute.py" in fails(features, copy)


def test_features_that_do_not_fit_the_run_raise(features, run, strata, tmp_path):
    copy = shutil.copytree(features, tmp_path / "copy")
    free = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("gen_tsigs*"))
    write_json(copy / "recipe.json", RECIPE | {"pool": 2})
    assert "other features" in (message := fails(copy, free)) and "(pool)" in message
    write_json(copy / "recipe.json", RECIPE | {"git": "another"})
    rows = read_index(copy)
    write_index(copy / "index-1-of-1.csv", [row for row in rows if row.path not in ("SVD/1.mp4", "SVD/2.mp4")])
    assert "lacks SVD/1.mp4 of" in fails(copy, free)
    write_index(copy / "index-1-of-1.csv", rows)
    features_file(copy, "SVD/1.mp4").write_bytes(b"junk")
    assert "SVD/1.mp4.npz: damaged" in fails(copy, free)
    bad = tmp_path / "strata.csv"
    bad.write_text("path,content\nReal/1.mp4,cats\n")
    assert "strata.csv: missing column(s) stratum" in fails(features, free, "--strata", str(bad))
    with pytest.raises(InputError, match=r"gone\.csv is missing"):
        call(features, free, "--strata", str(tmp_path / "gone.csv"))


def test_nothing_to_compare_raises(features, run, tmp_path):
    free = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("gen_tsigs*"))
    assert "have only: WildScrape" in fails(features, free, "--splits", "unseen")
    copy = shutil.copytree(features, tmp_path / "copy")
    for row in read_index(copy):
        with np.load(features_file(copy, row.path)) as arrays:
            write_features(features_file(copy, row.path), arrays["tokens"], arrays["times"], 0 * arrays["valid"])
    assert "have only: none" in fails(copy, free)


def test_clips_without_strata_make_no_figure(tmp_path):
    strata = np.array(["none", "none"])
    signatures.draw_strata(np.zeros((2, 8, 8)), np.array([0, 1]), ["a", "b"], strata, "", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
