"""The papers' tables and figures: ways to train, pooled folds, the paper's numbers in their places, T-Sigs of several
folds, and entries from end to end with stages that only pretend.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small import RECIPE, write_folder
from stages import module

import reproduce
from basics.artifacts import read_json, write_arrays, write_csv, write_json
from basics.running import ROOT, InputError
from experiments import (
    ablations,
    compared,
    datasets,
    figures,
    label_curve,
    loss_grid,
    paper,
    readme,
    tables,
    tsigs,
    unseen,
)
from experiments import stages as ways
from experiments.detectors import DETECTORS
from experiments.registry import ENTRIES, OTHERS
from tokens.dataset import read_index, write_index
from tokens.generators import LEVELS, class_index, class_names, load_generators
from tokens.split import choose_videos
from training.callbacks import CollapseError
from training.evaluation import ROLES, score_names
from training.presets import PRESETS

REMEASURED = False  # whether all results/ say how they were made; those from before do not
GENERATORS = tuple(load_generators())
CLIPS = 12  # of each generator
# Imported now: a module that is imported while stages pretend would keep the pretended one.
MEASURES = {name: entry.function("measure") for name, entry in ENTRIES.items()}


# ---------------------------------------------------------------- stages that only pretend


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Features of every generator, 3 clips for test, 1 for val, 8 to train; not to be changed."""
    return write_folder(
        tmp_path_factory.mktemp("noise"),
        GENERATORS,
        CLIPS,
        windows=lambda i: 1,
        split=lambda i: "test" if i % 4 == 0 else "val" if i == 1 else "train",
        recipe=RECIPE | {"tokens": 1},
    )


@pytest.fixture
def features(noise, tmp_path, monkeypatch):
    """The same as f in a folder of its own: index and recipe may be written anew, tokens are links."""
    monkeypatch.chdir(tmp_path)
    folder = Path("f")
    folder.mkdir()
    for own in noise.iterdir():
        if own.is_dir():
            (folder / own.name).symlink_to(own)
        else:
            shutil.copy(own, folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What the stages were called with, in order; they leave artifacts of random numbers. `right` sets how often a
    level's clips are called by their name.
    """
    made = SimpleNamespace(list=[], right=0.5, collapse=lambda flags: False)

    def pretend(name, arguments):
        args = module(name).get_args(arguments)
        made.list.append((name, args))
        if name == "04_tsigs":
            return pretend_tsigs(args)
        if made.collapse(args):
            raise CollapseError("collapsed")
        return pretend_fit(args, getattr(args, "level", "bin"), made.right)

    def import_module(name):
        return SimpleNamespace(main=lambda arguments: pretend(name, arguments))

    monkeypatch.setattr(ways, "importlib", SimpleNamespace(import_module=import_module))
    monkeypatch.setattr(ways, "MADE_ANEW", set())
    monkeypatch.setattr(tsigs, "REPEATS", 3)
    monkeypatch.setattr(unseen, "DRAWS", 1)
    monkeypatch.setattr(unseen, "BOOTSTRAPS", 5)
    monkeypatch.setattr(tables, "parameters_at_sizes", lambda *sizes: 1000)
    monkeypatch.setattr(compared, "PROBES", dict.fromkeys(compared.PROBES, call_all_real))
    return made


def call_all_real(videos, seed):
    return np.eye(len(videos.classes))[[0] * len(videos.test)]


def pretend_fit(args, level, right):
    keys = ("train_generators", "test_generators", "test_features", "fold", "labels_per_class", "limit", "seed")
    chosen = {key: getattr(args, key) for key in keys} | {"train_on_val": args.best == "last"}
    videos = choose_videos(read_index(args.features), level, args.features, load_generators(), **chosen)
    run, random = Path(args.run), np.random.default_rng(args.seed)
    rows = [row._replace(split=role) for role in ROLES for row in getattr(videos, role)]
    classes = len(videos.classes)
    labels = np.array([row.label or 0 for row in rows])
    called = np.where(random.random(len(rows)) < right, labels, random.integers(classes, size=len(rows)))
    names = [videos.classes[row.label] if row.split != "unseen" else "unseen" for row in rows]
    arrays = {"probabilities": np.eye(classes)[called], "embedding": random.normal(size=(len(rows), 12))}
    keys = {"video": "path", "generator": "generator", "group": "group", "split": "split"}
    arrays |= {key: np.array([getattr(row, own) for row in rows]) for key, own in keys.items()} | {
        "class": np.array(names)
    }
    script = module(ways.script(level))
    given = {key: value for key, value in vars(args).items() if key not in (*script.PATHS, *script.MACHINE)}
    recipe = {"level": level, "arguments": given, "paths": {key: getattr(args, key) for key in script.PATHS}}
    recipe |= {"features": read_json("f/recipe.json"), "index_sha256": "0", "seconds": 9}
    write_arrays(run / f"{level}_embeddings.npz", arrays | {"recipe": recipe})
    metrics = {"level": level, "classes": list(videos.classes), "videos": len(videos.test), "recipe": recipe}
    metrics |= {"clips": {role: [row.path for row in getattr(videos, role)] for role in ROLES}}
    metrics |= {"steps": args.steps or 7}
    metrics |= dict(accuracy=0.9, macro_accuracy=0.8, majority=0.75, precision=0.95, recall=0.94, auc=0.97)
    write_json(run / f"{level}.json", metrics)
    (run / f"{level}.keras").touch()
    history = {"loss": 1} | ({"embedding_loss": 0.2, "logits_loss": 0.8} if getattr(args, "loss", "ce") != "ce" else {})
    write_csv(run / f"{level}_history.csv", list(history), [history])
    return metrics


def pretend_tsigs(args):
    """Maps of noise around one of each class, as 04 keeps them."""
    with np.load(Path(args.run) / f"{args.level}_embeddings.npz") as arrays:
        names = np.where(arrays["split"] == "unseen", arrays["generator"], arrays["class"])
        kept = {key: arrays[key] for key in ("video", "generator", "split")}
        kept |= {"group": arrays["video"], "class": names}
        seen = set(arrays["class"].tolist()) - {"unseen"}
    random, classes = np.random.default_rng(args.seed), sorted(set(names.tolist()))
    centres = {name: random.random((8, 8)) for name in classes}
    maps = np.stack([centres[name] + random.normal(size=(8, 8)) / 100 for name in names])
    kept["stratum"] = np.where(np.arange(len(names)) % 2, "odd", "even")
    kept |= dict(classes=np.array(classes), seen=np.array([name in seen for name in classes]), maps=maps)
    for key in ("", "frames_shuffled_", "untrained_") if args.controls else ("",):
        kept |= {f"{key}maps": maps, f"{key}grand_mean": maps.mean(axis=0)}
    np.savez(Path(args.run) / f"{args.level}_tsigs.npz", **kept)
    for what in ("unseen", "strata"):
        (Path(args.run) / f"{args.level}_tsigs_{what}.png").touch()
    row = dict(clips=1, classes=20.0, chance=0.05, accuracy=0.5, within=0.4, between=0.1)
    measured = {name: [row] for name in (*tsigs.SHOWN_CONDITIONS, "across strata")}
    per_class = {name: {"seen": name in seen} for name in classes}
    return {"tables": measured, "strata": {"source": "k-means, a stand-in"}, "per_class": per_class}


def run_entry(name, *more):
    return reproduce.main([name, "--features", "f", *more])


def results_of(*folders, within="results"):
    """Where results on these features are."""
    return Path(within) / "+".join(datasets.own_name(folder) for folder in folders or ["f"])


# ---------------------------------------------------------------- every entry

# One of each kind; wild's and report have their own tests, and every committed result is rendered below.
KINDS = ("table-7", "table-4", "table-5", "table-s3", "table-s2", "figure-6", "figure-4", "ablation-margin", "enrol")
KINDS += ("back-off", "figure-s1", "loss-grid", "ablation-depth")


@pytest.mark.parametrize("name", KINDS)
def test_entry_leaves_the_numbers_it_measured_and_a_table_of_them(features, calls, name):
    results = run_entry(name, "--seeds", "2" if name in ("table-7", "ablation-margin", "back-off") else "1")
    folder = results_of()
    assert json.loads((folder / f"{name}.json").read_text()) == json.loads(json.dumps(results))
    lines = (folder / f"{name}.md").read_text().splitlines()
    assert lines == ENTRIES[name].render(json.loads((folder / f"{name}.json").read_text()))
    tables_of_it = [line for line in lines if line.startswith("|")]
    assert len(tables_of_it) > 2 and not any("nan" in line for line in lines)
    columns = {}
    for line in tables_of_it:
        columns.setdefault(line.count("|"), []).append(line)
    assert all(len(own) >= 3 for own in columns.values())  # header, rule, a row: every line as wide as its header
    assert (folder / f"{name}.png").exists() == ENTRIES[name].drawn


@pytest.mark.parametrize("name", ["table-7", "figure-6", "back-off"])
def test_entry_pools_folds(features, calls, name, monkeypatch):
    monkeypatch.setattr(tsigs, "draw_maps", lambda grid, what, path: None)
    results = run_entry(name, "--folds", "2", "--seeds", "1")
    assert results["about"]["folds"] == 2
    folds = {args.fold for _, args in calls.list if hasattr(args, "fold")}
    assert folds == {(1, 2), (2, 2)}
    level = results.get("level", "gen")
    once = CLIPS * sum(class_index(level, name) is not None for name in GENERATORS)
    for arm in results.get("arms", {}).values():
        counts = [seed["own"]["gen"] if name == "back-off" else seed for seed in arm["seeds"]]
        assert [seed["videos"] for seed in counts] == [once]
    best = {args.best for name, args in calls.list if hasattr(args, "best")}
    assert best == {"last"}


def test_a_collapse_is_counted_and_the_entry_goes_on(features, calls, monkeypatch):
    calls.collapse = lambda args: getattr(args, "loss", "") == "hnm" and args.seed == 1
    results = run_entry("table-7", "--seeds", "2")
    assert results["arms"]["2-stage few CE"]["collapsed"] == 0
    assert results["arms"]["2-stage few CE+HNM"]["collapsed"] == 1
    row = next(
        line for line in (results_of() / "table-7.md").read_text().splitlines() if "| 2-stage few CE+HNM |" in line
    )
    assert "1 (1 collapsed)" in row
    calls.collapse = lambda args: getattr(args, "loss", "") == "hnm"
    monkeypatch.setattr(ablations, "ABLATIONS", {"margin": ablations.ABLATIONS["margin"]})
    run_entry("ablation-margin", "--seeds", "1")
    assert "0 (1 collapsed)" in (results_of() / "ablation-margin.md").read_text()
    for name in ("figure-1c", "figure-5", "back-off", "table-s2"):
        run_entry(name, "--seeds", "1")
    rows = run_entry("ablation", "--seeds", "1")["rows"]
    assert [rows[i]["collapsed"] for i in (0, -1)] == [1, 1] and rows[-1]["what"] == "figure-5"
    assert "| collapsed (1) |" in (results_of() / "ablation.md").read_text()


def test_generators_outside_the_table_are_scored(features, calls, monkeypatch):
    rows = read_index("f")
    for name in ("Elsewhere", "Abroad"):
        (features / name).symlink_to((features / "SVD").resolve())
        outside = [row for row in rows if row.generator == "SVD"]
        rows = rows + [row._replace(path=row.path.replace("SVD", name), generator=name) for row in outside]
    write_index("f/index-1-of-1.csv", [row._replace(group=row.path) for row in rows])
    found, random = [], np.random.default_rng(0)

    def scores_of(run, names):
        found.append(run)
        one = unseen.LeftOut(random.normal(size=9), random.normal(size=9), np.arange(9), np.arange(9))
        return {"energy": dict.fromkeys(names, one)}

    monkeypatch.setattr(unseen, "scores_of", scores_of)
    results = run_entry("unseen-generators", "--folds", "2", "--seeds", "2")
    assert [run.name for run in found] == [f"seed{seed}-fold{fold}" for seed in (0, 1) for fold in (1, 2)]
    assert list(results["scores"][0]["generators"]) == ["Abroad", "Elsewhere"]
    assert (
        "| score | mean AUROC | mean FPR at 95% TPR | Abroad | Elsewhere |"
        in (results_of() / "unseen-scores.md").read_text().splitlines()
    )
    signatures = [args for name, args in calls.list if name == "04_tsigs"]
    assert {tuple(args.splits) for args in signatures} == {("train", "test", "unseen")}
    write_index("f/index-1-of-1.csv", [row for row in rows if row.generator != "Abroad"])
    with pytest.raises(InputError, match="clips of 1 generators outside the table; it takes two"):
        run_entry("unseen-generators")


# ---------------------------------------------------------------- ways to train


def test_an_arm_trains_as_its_name_says(features, calls):
    run_entry("table-7", "--seeds", "2", "--few", "4")
    fits = [args for name, args in calls.list if name == "03_attribute"]
    assert len(fits) == 16
    for seed in (0, 1):
        found = {(args.init == "scratch", args.labels_per_class, args.loss) for args in fits if args.seed == seed}
        assert found == {
            (start, labels, loss) for start, labels in ((True, 4), (False, 4), (True, "all")) for loss in ("ce", "hnm")
        }
    for args in fits:
        assert (args.preset, args.best) == ("small", "last" if args.labels_per_class == 4 else "val")
        preset = {key: value for key, value in PRESETS["small"].items() if key != "steps"}
        assert {key: getattr(args, key) for key in preset} == preset
        if args.init != "scratch":
            first = [other for name, other in calls.list if name == "02_pretrain_binary" and other.seed == args.seed]
            assert {str(Path(other.run) / "bin.keras") for other in first} == {args.init}
    assert len({args.run for args in fits}) == 16
    steps = PRESETS["small"]["steps"]
    longer = {(args.init == "scratch", args.labels_per_class, args.loss) for args in fits if args.steps == 2 * steps}
    assert longer == {(True, 4, "ce"), (True, 4, "hnm")}  # as many as two stages take together
    assert {args.steps for args in fits} == {steps, 2 * steps}


def test_an_ablation_changes_its_stage_alone_and_shares_what_is_there(features, calls):
    run_entry("table-7", "--seeds", "1")
    plain = {args.run for _, args in calls.list}
    changes = {
        "margin": ("margin", {1, 5, -1}),
        "positives": ("positives", {"all", "hardest", "random"}),
        "batching": ("batching", {"natural"}),
        "depth": ("temporal_blocks", {4, 6, 8, 12}),  # two are the preset's
    }
    for what, (flag, wanted) in changes.items():
        calls.list.clear()
        run_entry(f"ablation-{what}", "--seeds", "1")
        new = [(name, args) for name, args in calls.list if args.run not in plain]
        assert {getattr(args, flag) for name, args in new if name == "03_attribute"} == wanted
        first = {getattr(args, flag) for name, args in new if name == "02_pretrain_binary"}
        assert first == (wanted if what == "depth" else set())
        for _, args in new:
            assert args.temporal_blocks == PRESETS["small"]["temporal_blocks"] or what == "depth"
            # Of two positives, so of three clips of a class: else the kinds of positives are one.
            assert args.batch_size >= 3 * 20 or what != "positives"
    calls.list.clear()
    run_entry("ablation-schedule", "--seeds", "1")
    found = [(args.schedule, args.warmup_steps, args.loss) for name, args in calls.list if name == "03_attribute"]
    kinds = ("halving", "cosine", "constant")
    assert sorted(found) == sorted((kind, steps, "ce") for kind in kinds for steps in (0, ablations.WARM_UP))


def test_the_grid_trains_with_the_papers_loss_setting(features, calls):
    run_entry("loss-grid", "--seeds", "1", "--few", "4")
    fits = [args for name, args in calls.list if name == "03_attribute"]
    cells = [(args.init == "scratch", args.loss, args.learning_rate) for args in fits]
    kinds = [(alone, loss) for alone in (True, False) for loss in ("ce", "semi", "hnm")]
    assert sorted(cells) == sorted((*kind, rate) for kind in kinds for rate in loss_grid.RATES)
    ours = dict(batch_size=32, steps=4000, epochs=40, patience=5, labels_per_class=4)
    papers = vars(module("03_attribute").get_args([]))
    own = {"features", "run", "init", "preset", "temporal_blocks", "loss", "learning_rate", "seed", *ours}
    for args in fits:
        assert {key: getattr(args, key) for key in ours} == ours
        mining = {"normalize", "margin", "ce_weight"} if args.loss == "ce" else set()  # which CE does not use
        assert {key for key, value in vars(args).items() if value != papers[key]} <= own | mining
    stage_one = [args for name, args in calls.list if name == "02_pretrain_binary"]
    small = {key: value for key, value in PRESETS["small"].items() if key in stage_one[0]}
    assert all({key: getattr(args, key) for key in small} == small for args in stage_one)


def test_labels_of_the_curve_are_those_trained_on(features, calls, monkeypatch):
    monkeypatch.setattr(label_curve, "SHARES", (0.001, 0.3, 0.6))
    results = run_entry("figure-s1", "--seeds", "1")
    for level, classes in {"team": 15, "gen": 20}.items():
        for point in results["curves"][level]:
            fits = [args for name, args in calls.list if name == "03_attribute" and args.level == level]
            [args] = [args for args in fits if args.labels_per_class == point["per_class"]]
            assert args.best == "last" and args.init != "scratch" and point["budget"]["val"] == 0
            assert point["budget"]["train"] == classes * point["per_class"]
            assert point["share"] == pytest.approx(point["budget"]["train"] / (20 * 9))  # 8 to train, 1 for val
    assert [point["per_class"] for point in results["curves"]["gen"]] == [1, 3, 5]


@pytest.fixture
def detected(monkeypatch):
    """What detectors were asked to see, in order; they call all clips Real."""
    asked = []

    def pretend(name, level, videos, root, run, seed, equalize, steps, full, overwrite):
        assert (equalize, steps, full) == (None, datasets.ZOO["pixel_steps"], False)
        assert not overwrite
        asked.append((name, level, videos, root, run))
        run.mkdir(parents=True, exist_ok=True)
        names = np.array([videos.classes[row.label] for row in videos.test])
        arrays = {"class": names, "generator": names, "split": np.full(len(names), "test")}
        np.savez(run / f"{level}_embeddings.npz", probabilities=call_all_real(videos, 0), **arrays)
        facts = {"classes": list(videos.classes), "parameters": 5, "seconds": 1, "steps": steps}
        write_json(run / f"{level}.json", facts)
        return run

    monkeypatch.setattr(compared, "detect", pretend)
    return asked


def touch_clips(folder):
    for row in read_index(folder):
        clip = Path("clips") / row.source
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.touch()


@pytest.mark.parametrize(("name", "level"), [("table-s2", "gen"), ("table-5", "bin")])
def test_detectors_see_the_same_clips(features, calls, detected, name, level):
    with pytest.raises(InputError, match=r"clips/Crafter/0.mp4 is missing; name the folder of the clips with --videos"):
        run_entry(name, "--seeds", "1", "--videos", "clips")
    assert not calls.list
    touch_clips("f")
    run_entry(name, "--seeds", "2", "--videos", "clips")
    assert [own[:2] for own in detected] == [(own, level) for own in DETECTORS for _ in (0, 1)]
    assert len({run for *_, run in detected}) == len(detected)
    trained = {row.path for row in read_index("f") if row.split != "test"}
    for _, _, videos, root, _ in detected:
        assert {row.path for row in videos.train + videos.val} == trained and root == Path("clips")


def test_detectors_are_left_out_of_attribution_without_clips(features, calls, detected):
    assert not set(DETECTORS) & set(run_entry("table-s2", "--seeds", "1")["methods"])
    assert compared.NO_PIXELS in (results_of() / "table-s2.md").read_text()
    touch_clips("f")
    results = run_entry("table-s2", "--seeds", "1", "--videos", "clips")
    for level in compared.COMPARED_LEVELS:  # all predicted as Real
        for seed in results["methods"]["NPR"]["levels"][level]["seeds"]:
            assert seed["macro"] == pytest.approx(1 / seed["classes"])
            assert seed["per_class"]["Real"] == [3, 3]


def test_all_methods_tell_real_from_fake_here_and_on_another_data_set(features, calls, detected):
    own = dict.fromkeys(("group", "source"), lambda generator, i: f"g/{generator}/{i}.mp4")
    other = write_folder("g", ("Real", "Sora"), 4, recipe=RECIPE | {"tokens": 1}, **own)
    touch_clips("f")
    more = ("--seeds", "2", "--videos", "clips", "--test-features", str(other))
    tested = run_entry("table-5", *more)["tested"]
    blind = {"SAGA", *compared.PROBES}
    assert {place: set(own) for place, own in tested.items()} == {"in-domain": blind | {*DETECTORS}, "g": blind}
    assert f"{', '.join(DETECTORS)} see pixels: for g name" in (results_of() / "table-5.md").read_text()
    for seed in (0, 1):
        found = tested["in-domain"]["NPR"][seed]
        assert (found["recall"], found["macro_accuracy"], found["auc"], found["videos"]) == (0, 0.5, 0.5, 60)
    assert [own["videos"] for own in tested["g"]["metadata only"]] == [8, 8]
    touch_clips("g")
    assert set(run_entry("table-5", *more)["tested"]["g"]) == blind | {*DETECTORS}
    runs = {run for *_, run in detected}
    assert len(runs) == 2 * 2 * len(DETECTORS)  # by detector, seed and test set


def test_probes_with_few_labels_train_on_exactly_those(features, calls, monkeypatch):
    seen = []
    monkeypatch.setattr(compared, "PROBES", {"metadata only": lambda *own: seen.append(own[0]) or call_all_real(*own)})
    run_entry("table-s2", "--seeds", "1", "--few", "3")
    few, everything = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for videos in few:
        assert not videos.val and set(np.bincount([row.label for row in videos.train])) == {3}
    assert [len(videos.test) for videos in few] == [len(videos.test) for videos in everything]


def test_the_papers_settings_are_the_stages_defaults():
    for name, wanted in {"02_pretrain_binary": ways.PAPER, "03_attribute": ways.PAPER | ways.PAPER_MINING}.items():
        defaults = vars(module(name).get_args([]))
        if name == "03_attribute":
            assert defaults["temporal_blocks"] is None  # those of stage 1, else the paper's
            defaults["temporal_blocks"] = 5
        assert {key: defaults[key] for key in wanted} == wanted
    every = ways.PAPER | ways.PAPER_MINING | PRESETS["small"] | {"train_generators": ["SVD", "SD"]}
    found = vars(module("03_attribute").get_args([str(flag) for flag in ways.as_flags(every)]))
    assert {key: found[key] for key in every} == every


def test_full_is_the_papers_setting(features, calls):
    run_entry("table-7", "--seeds", "1", "--full")
    for name, args in calls.list:
        defaults = module(name).get_args([])
        assert all(getattr(args, key) == getattr(defaults, key) for key in ways.PAPER) and args.preset is None
        if name == "03_attribute":
            assert args.labels_per_class in (500, "all")
            assert all(getattr(args, key) == ways.PAPER_MINING[key] for key in ways.PAPER_MINING if key != "loss")


def test_runs_of_other_features_or_settings_have_folders_of_their_own(features, calls):
    def folders(*more):
        calls.list.clear()
        run_entry("table-2", "--seeds", "1", *more)
        return {args.run for _, args in calls.list}

    first = folders()
    assert first == folders()
    assert first.isdisjoint(folders("--full"))
    few = folders("--few", "3")
    assert len(first & few) == 2 and len(few - first) == 3  # stage 1 and all labels are shared
    recipe = json.loads(Path("f/recipe.json").read_text())
    write_json("f/recipe.json", recipe | {"git": "other", "versions": {}})
    assert first == folders()
    write_json("f/recipe.json", recipe | {"pool": 2})
    assert first.isdisjoint(folders())


def test_features_of_ones_own_never_write_into_results_itself(features, calls):
    """Two folders of one name have results and runs of their own, and so have several folders compared."""
    for own in ("a", "b"):
        Path(own).mkdir()
        (Path(own) / "f").symlink_to(features.resolve())  # one folder by two names
    shutil.copytree(features, "c/f", symlinks=True)
    found, runs = {}, {}
    for own in ("a/f", "b/f", "c/f", "f"):
        calls.list.clear()
        reproduce.main(["table-2", "--features", own, "--seeds", "1"])
        found[own], runs[own] = results_of(own), {args.run for _, args in calls.list}
        assert (found[own] / "table-2.md").exists() and found[own].name.startswith("f-")
    assert found["a/f"] == found["b/f"] == found["f"] != found["c/f"]
    assert runs["a/f"] == runs["f"] and runs["f"].isdisjoint(runs["c/f"])
    reproduce.main(["table-s3", "--features", "f", "c/f", "--seeds", "1"])
    assert (results_of("f", "c/f") / "table-s3.json").exists()
    assert not list(Path("results").glob("*.*"))


def test_overwrite_reaches_every_stage_once(features, calls, monkeypatch):
    def overwritten():
        found = [(name, args.run) for name, args in calls.list if args.overwrite]
        assert len(found) == len(set(found))
        calls.list.clear()
        return set(found)

    run_entry("figure-s3", "--seeds", "1")
    runs = {(name, args.run) for name, args in calls.list}
    assert not overwritten() and len(runs) == 3  # 02, 03 and 04
    for _ in range(2):  # the figure asks for its run again, and so does the next entry of the process
        run_entry("figure-s3", "--seeds", "1", "--overwrite")
        assert overwritten() == runs
        runs = set()
    monkeypatch.setattr(ways, "MADE_ANEW", set())
    asked = []
    monkeypatch.setattr(compared, "detect", lambda *given: asked.append(given[-1]) or 1 / 0)
    monkeypatch.setattr(compared, "check_clips", lambda data: None)
    with pytest.raises(ZeroDivisionError):
        run_entry("table-s2", "--seeds", "1", "--videos", "clips", "--overwrite")
    assert asked == [True]


def test_overwrite_extracts_anew(tmp_path, calls, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(
        ways.importlib, "import_module", lambda name: SimpleNamespace(main=lambda own: made.append(own))
    )
    args = reproduce.get_args(["unseen-generators", "--overwrite"])
    for _ in range(2):
        datasets.extract_zoo(args, "--pool 2")
    assert ["--overwrite" in own for own in made] == [True, True, False, False]


def test_a_run_of_other_code_is_not_shared(features, calls):
    """What a stage refuses goes through as its one line, which names the flag."""

    def refuse(args):
        raise InputError(f"{args.run}/bin.json was made by other code (model); choose another --run, or --overwrite it")

    calls.collapse = refuse
    with pytest.raises(InputError, match=r"runs/paper/.*bin.json was made by other code \(model\).*--overwrite"):
        run_entry("table-5", "--seeds", "1")


def test_a_small_run_takes_few_clips_and_has_its_own_results(features, calls):
    run_entry("figure-s3", "--seeds", "1", "--limit", "2")
    assert {args.limit for _, args in calls.list} == {2}
    assert (results_of(within="results/limit-2") / "figure-s3.md").exists() and not results_of().exists()
    run_entry("table-2", "--seeds", "1", "--full")
    assert (results_of(within="results/full") / "table-2.md").exists() and not results_of().exists()


# ---------------------------------------------------------------- numbers


def test_pooled_names_are_scored():
    labels, called = ["a", "a", "a", "b"], ["a", "b", "a", "a"]
    found = score_names(labels, called)
    assert (found["videos"], found["classes"], found["majority"], found["uniform"]) == (4, 2, 0.75, 0.5)
    assert (found["micro"], found["macro"]) == (0.5, pytest.approx((2 / 3 + 0) / 2))
    assert found["per_class"] == {"a": [3, 2], "b": [1, 0]}


def test_a_cell_is_mean_and_deviation():
    assert tables.mean_std([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
    assert tables.mean_std([0.5]) == "50.0"
    assert tables.mean_std([]) == tables.mean_std([None]) == "-"


def test_facts_of_a_run_are_those_by_loops(tmp_path):
    random = np.random.default_rng(0)
    embedding, names = random.normal(size=(30, 5)), np.array(list("abc") * 10)
    split = np.array(["test"] * 24 + ["train"] * 6)
    np.savez(tmp_path / "gen_embeddings.npz", embedding=embedding, split=split, **{"class": names})
    (tmp_path / "gen_history.csv").write_text("loss,logits_loss,embedding_loss\n9,8,7\n3,2,1\n")
    recipe = {"arguments": {"temporal_blocks": 2}, "features": {"frames": 8, "tokens": 1, "dim": 12}, "seconds": 7}
    recipe["paths"] = {"init": str(tmp_path / "first" / "bin.keras")}
    write_json(tmp_path / "gen.json", {"classes": ["a", "b", "c"], "recipe": recipe})
    write_json(tmp_path / "first" / "bin.json", {"recipe": {"seconds": 5}})
    found = ablations.run_facts(tmp_path)
    hard = pairs = 0
    for a in range(24):
        nearest = min(np.sum((embedding[a] - embedding[n]) ** 2) for n in range(24) if names[n] != names[a])
        for p in range(24):
            if p != a and names[p] == names[a]:
                pairs += 1
                hard += np.sum((embedding[a] - embedding[p]) ** 2) >= nearest
    assert found["hard_pairs"] == pytest.approx(hard / pairs)
    lengths = [np.sum(vector**2) for vector in embedding[:24]]
    centre = embedding[:24].mean(axis=0)
    assert found["square_length"] == pytest.approx(np.mean(lengths))
    assert found["variance_fraction"] == pytest.approx(
        np.mean([np.sum((v - centre) ** 2) for v in embedding[:24]]) / np.mean(lengths)
    )
    assert (found["cross_entropy"], found["mined_loss"]) == (2, 1)


def test_neighbours_name_clusters_and_are_at_chance_on_noise():
    random, names = np.random.default_rng(0), np.repeat(list("abcd"), 15)
    clusters = np.repeat(10 * np.eye(4), 15, axis=0) + random.normal(size=(60, 4))
    assert figures.neighbours(clusters, names)["macro"] == 1
    assert figures.neighbours(random.normal(size=(60, 4)), names)["macro"] < 0.5


def fold_runs(shift):
    """Three folds whose models attend differently: a fold's pattern, ten times as strong as a class's."""
    random, runs = np.random.default_rng(0), []
    patterns = random.normal(size=(4, 8, 8))
    for fold in range(3):
        common = 10 * random.normal(size=(8, 8))
        names = np.repeat(list("abcd"), 4)
        maps = common + np.repeat(patterns, 4, axis=0) + random.normal(size=(16, 8, 8)) / 4
        groups = np.array([f"{fold}-{i}" for i in range(16)])
        mean = common + patterns.mean(axis=0)
        arrays = {"maps": maps, "class": names, "group": groups, "split": np.full(16, "test")}
        train = {"maps": 0 * maps, "class": np.roll(names, 4), "group": groups, "split": np.full(16, "train")}
        arrays = {key: np.concatenate([values, train[key]]) for key, values in arrays.items()}
        controls = {key: np.roll(arrays["maps"], fold, axis=0) for key in ("frames_shuffled_maps", "untrained_maps")}
        means = dict.fromkeys(("grand_mean", "frames_shuffled_grand_mean", "untrained_grand_mean"), shift * mean)
        runs.append((None, None, arrays | controls | means))
    return runs


def test_signatures_are_identified_although_folds_attend_differently():
    tables = tsigs.signature_tables(fold_runs(shift=True), seed=0)
    assert tables["trained"][0]["accuracy"] > 0.9 > 0.5 > tables["labels permuted"][0]["accuracy"]
    assert tsigs.signature_tables(fold_runs(shift=False), seed=0)["trained"][0]["accuracy"] < 0.8


# ---------------------------------------------------------------- the paper's numbers


def test_splits_are_the_papers(features):
    data = datasets.choose_data(reproduce.get_args(["table-4", "--features", "f"]))[0]
    sizes = {}
    for split, chosen in tables.SPLITS.items():
        if chosen:
            sizes[split] = tuple(len(tables.generators_of(data, side)) for side in chosen)
    for split, (train, test) in sizes.items():
        assert re.findall(r"\((\d+)\)", split) == [str(train), str(test)]
    for split in sizes:
        trained, tested = (tables.generators_of(data, side) for side in tables.SPLITS[split])
        assert set(trained).isdisjoint(tested)
    with open(ROOT / "experiments" / "paper_results.csv", newline="") as file:
        rows = {line["row"] for line in csv.DictReader(file) if line["table"] == "4 BIN-L"}
    assert rows == {tables.AS_PRINTED.get(split, split) for split in tables.SPLITS}


def test_splits_are_tested_on_as_many_real_clips_as_fake_ones(features, calls):
    found = run_entry("table-4", "--seeds", "2")["splits"]
    for seeds in found.values():
        assert [(own["videos"], own["majority"]) for own in seeds] == [(2 * CLIPS // 4, 0.5)] * 2
    drawn = {tuple(tables.balanced_places(np.array([1, 0, 1, 1, 0]), seed).tolist()) for seed in range(20)}
    assert drawn == {(0, 1, 2, 4), (0, 1, 3, 4), (1, 2, 3, 4)}


def test_a_split_without_a_side_is_left_out(features, calls):
    kept = [row for row in read_index("f") if row.generator in ("Real", "SVD", "Lavie", "Sora")]
    write_index("f/index-1-of-1.csv", kept)
    found = run_entry("table-4", "--seeds", "1")["splits"]
    assert "T2V (12) -> I2V (4)" in found and "SD 2.1 (6) -> other known SD backbones (5)" in found
    write_index("f/index-1-of-1.csv", [row for row in kept if row.generator != "SVD"])
    assert "T2V (12) -> I2V (4)" not in run_entry("table-4", "--seeds", "1")["splits"]


def line_of(name, start):
    return next(line for line in (results_of() / f"{name}.md").read_text().splitlines() if line.startswith(start))


def test_the_papers_number_stands_beside_its_setting(features, calls):
    for name in ("table-2", "table-3", "table-6", "table-7", "table-4", "figure-s2"):
        run_entry(name, "--seeds", "1")
    overall = {"1-stage few CE": 24.55, "1-stage few CE+HNM": 65.80, "2-stage few CE": 55.13}
    overall |= {"2-stage few CE+HNM": 94.99, "1-stage all CE": 70.51, "1-stage all CE+HNM": 97.41}
    for arm, value in overall.items():
        assert line_of("table-7", f"| {arm} |").endswith(f"| {value:.2f} |")
    row = [cell.split("(")[1].strip(") ") for cell in line_of("table-7", "| DynamiCrafter |").split("|") if "(" in cell]
    assert row == ["0.00", "0.00", "0.20", "56.64", "99.53", "75.58"]
    assert line_of("table-2", "| 1-stage few CE+HNM |").endswith("| 82.41 |")
    assert line_of("table-3", "| 2-stage few CE+HNM |").endswith("| 98.49 |")
    assert line_of("table-6", "| 1-stage all CE+HNM |").endswith("| 94.94 |")
    assert "(13.33)" in line_of("table-6", "| OpenAI |").split("|")[3]
    assert line_of("table-4", "| SD 2.1 (6)").endswith("| 99.94 / 99.90 / 99.96 |")
    assert line_of("table-4", "| Alibaba+Stability+Tencent+Pika (7)").endswith("| 99.16 / 99.98 / 98.41 |")
    assert line_of("figure-s2", "| CE+semi-HNM |").endswith("| 70.13 |")
    assert line_of("figure-s2", "| Sora |").count("(") == 2  # CE 93.33, HNM 73.33


def test_the_radar_shows_the_papers_overall():
    assert paper.paper_overall(ways.TWO_FEW) == {
        "bin": 99.94,
        "task": 98.20,
        "sd": 98.49,
        "team": 97.77,
        "gen": 94.99,
    }
    assert paper.paper_overall(ways.ONE_ALL)["gen"] == 97.41
    assert paper.paper_overall(ways.ONE_FEW)["bin"] is None  # the paper has no BIN-L with few labels


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table-7", "--features", "gone"], "gone: no index-.*; run 01_extract_features.py --features gone"),
        (
            ["table-7", "--features", "f", "f"],
            "table-7 takes one folder of --features; table-s3, encoder-transfer",
        ),
        (["table-4", "--features", "f", "--folds", "3"], "table-4 wants the recorded split"),
        (["table-7", "--data", "corpus", "--corpus", "gone"], "gone/clips.csv is missing; name the folder"),
    ],
)
def test_bad_input_raises_in_one_line(features, arguments, message):
    with pytest.raises(InputError, match=message):
        reproduce.main([*arguments, "--seeds", "1"])


def test_missing_test_features_raise_before_training(features, calls):
    with pytest.raises(InputError, match="gone.recipe.json is missing; run 01_extract_features.py"):
        run_entry("table-5", "--test-features", "gone", "--seeds", "1")
    assert not calls.list


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["table-9"],
        ["table-7", "--seeds", "0"],
        ["table-7", "--folds", "x"],
        ["table-7", "--folds", "1"],
        ["table-7", "--features", "f", "--videos", "clips"],
        ["table-s2", "--videos", "clips"],
        ["ablation", "colour"],
        ["readme", "--features", "f"],
        ["corpus"],
    ],
)
def test_wrong_arguments_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(arguments)
    assert ended.value.code == 2
    capsys.readouterr()


def test_a_name_may_be_two_words():
    assert reproduce.get_args(["ablation", "margin"]).name == "ablation-margin"
    assert reproduce.get_args(["ablation"]).name == "ablation"


def test_list_names_all_experiments_and_what_they_need(capsys):
    reproduce.main(["--list"])
    printed = capsys.readouterr().out
    for name, entry in ENTRIES.items():
        assert f"\n{name}" in f"\n{printed}" and entry.minutes > 0 and entry.paper in printed
    assert all(f"\n{name}" in printed for name in OTHERS)


def test_list_and_wrong_flags_answer_at_once():
    code = """
import sys, time, reproduce
reproduce.main(["--list"])
try: reproduce.main(["table-9"])
except SystemExit as end: assert end.code == 2
assert not {"keras", "sklearn", "matplotlib", "cv2", "scipy"} & set(sys.modules)
assert time.process_time() < 1.5
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_runs_every_experiment_by_name():
    names = [name for name in (*ENTRIES, *OTHERS) if name != "compare"]  # it takes run folders
    done = subprocess.run(["make", "--dry-run", *names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in done.stdout.splitlines() if "reproduce.py" in line] == names


def test_paper_runs_every_entry_with_the_same_flags(monkeypatch):
    asked = []

    def run(command, check):
        asked.append(command[2:])
        return SimpleNamespace(returncode=int(command[2] == "enrol"))

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match="enrol could not be done"):
        reproduce.main(["--limit", "6", "paper"])
    assert asked == [[name, "--limit", "6"] for name in list(ENTRIES)[: len(asked)]] and asked[-1][0] == "enrol"


def test_every_entrys_functions_are_there():
    for entry in ENTRIES.values():
        assert callable(MEASURES[entry.name]) and callable(entry.function("render"))
        assert not entry.drawn or callable(entry.function("draw"))


def test_entries_of_ablations_name_their_conditions():
    for what, conditions in ablations.ABLATIONS.items():
        entry = ENTRIES[f"ablation-{what}"]
        assert entry.what == f"ablation of {what} at GEN-L: {', '.join(conditions)}" and entry.given == {"what": what}
        assert f" {sum(map(len, conditions.values()))} fits of 20 min" in entry.paper


# ---------------------------------------------------------------- how numbers were made


def test_results_say_how_they_were_made(features, calls):
    run_entry("table-7", "--seeds", "2", "--few", "4")
    path = results_of() / "table-7.json"
    found = json.loads(path.read_text())
    made = found["provenance"]
    assert made["command"] == "python reproduce.py table-7 --features f --seeds 2 --few 4"
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", made["commit"])
    assert {"python", "numpy", "keras", "scikit-learn", "backend", "cores"} <= made["made_with"].keys()
    assert list(made["data"]) == [results_of().name] and found["measured"].keys() == {"date", "machine"}
    for arm, result in found["arms"].items():
        own = made["trained"][f"{result['run']}/03-gen"]
        (flags,) = [
            args for _, args in calls.list if args.seed == 0 and Path(args.run).parts[-2:] == (result["run"], "seed0")
        ]
        trained = (
            "loss",
            "margin",
            "learning_rate",
            "schedule",
            "steps",
            "labels_per_class",
            "best",
            "dropout",
            "dtype",
        )
        assert {key: own["settings"][key] for key in trained} == {key: getattr(flags, key) for key in trained}
        assert not {"seed", "fold", "run", "overwrite"} & own["settings"].keys()
        assert list(own["runs"]) == ["seed0", "seed1"]
        assert own["start"] == (flags.init if flags.init == "scratch" else Path(flags.init).parts[-3])
        clips = read_json(Path(flags.run) / "gen.json")["clips"]
        first = own["runs"]["seed0"]
        assert [first["train"], first["val"]] == [len(clips["train"]), len(clips["val"])]
        assert result["budget"] == {"train": 80, "val": 0} if "few" in arm else {"train": 160, "val": 20}
        labels, called = ways.tested(Path(flags.run), "gen")
        assert (first["videos"], first["correct"]) == (60, np.sum(labels == called))
        assert [class_names("gen")[ord(letter) - ord("0")] for letter in first["answers"]] == called.tolist()
    steps = PRESETS["small"]["steps"]
    assert found["arms"]["2-stage few CE"]["steps"] == [steps, steps]
    assert line_of("table-7", "| 2-stage few CE |").split(" | ")[-3:-1] == ["80 (stage 1: 180)", f"{2 * steps}"]
    assert line_of("table-7", "| 1-stage few CE, 2 x the steps |").split(" | ")[-3:-1] == ["80", f"{2 * steps}"]
    settings = line_of("table-7", "Trained with")
    rate = f"`--preset small`: rate {PRESETS['small']['learning_rate']:g} falling along a cosine"
    assert rate in settings and "CE or 0." in settings and f"Backend {made['made_with']['backend']}" in settings
    again = run_entry("table-7", "--seeds", "2", "--few", "4")
    assert json.loads(json.dumps(again)) | {"measured": 0} == found | {"measured": 0}


def tampered(path, change):
    """Change the results in a file."""
    results = json.loads(path.read_text())
    change(results, next(own for own in results["provenance"]["trained"].values() if "loss" in own["settings"]))
    write_json(path, results)


def elsewhere(results, model):
    """As if made on another backend, with all clips named correctly."""
    results["provenance"]["made_with"]["backend"] = "other"
    model["runs"]["seed0"]["correct"] = model["runs"]["seed0"]["videos"]


TAMPERED = {  # what is said of it: a change of the results, and of a model among them
    "another class for 1 of 51 clips": lambda results, model: model["runs"]["seed0"].update(
        answers="~" + model["runs"]["seed0"]["answers"][1:]
    ),
    r"arms/1-stage few CE\+HNM: DIFFERS, arms/.*/micro was 1": lambda results, model: results["arms"][
        "1-stage few CE+HNM"
    ]["seeds"][0].update(micro=1),
    r"other settings \(margin\)": lambda results, model: model["settings"].update(margin=7),
    "DIFFERS, arms/2-stage few CE.HNM was None": lambda results, model: results["arms"].pop("2-stage few CE+HNM"),
    "DIFFERS, other features": lambda results, model: results["provenance"]["data"].update(f="0"),
    "DIFFERS, accuracy .* on another backend": elsewhere,
}


@pytest.mark.parametrize("said", TAMPERED)
def test_verify_measures_again_and_finds_what_differs(features, calls, capsys, said):
    run_entry("table-2", "--seeds", "2")
    trained = {args.run for _, args in calls.list}
    calls.list.clear()
    reproduce.main(["--verify", "table-2", "--features", "f"])
    assert calls.list and trained.isdisjoint(args.run for _, args in calls.list)
    assert {args.seed for _, args in calls.list} == {0}
    printed = capsys.readouterr().out
    assert printed.count("/03-task: 51 clips alike") == 4 and "DIFFERS" not in printed
    assert "table-2.json, arms/2-stage few CE+HNM: " in printed
    tampered(results_of() / "table-2.json", TAMPERED[said])
    with pytest.raises(InputError, match="table-2.json in results are not what was measured now"):
        reproduce.main(["--verify", "--features", "f"])
    assert re.search(said, capsys.readouterr().out)


def test_verify_elsewhere_wants_accuracies_within_their_intervals(features, calls, capsys):
    for name in ("table-2", "figure-5"):
        run_entry(name, "--seeds", "1")
        tampered(results_of() / f"{name}.json", lambda results, model: results["provenance"].update(made_with={}))
    calls.right = 0.49
    reproduce.main(["--verify", "--features", "f"])
    printed = capsys.readouterr().out
    assert re.search(r"table-2.json, arms/.*: accuracy 0\.\d+, 0\.\d+ \(0\.\d+-0\.\d+\) on another backend", printed)
    assert "table-2.json, about: not comparable" in printed


def test_verify_without_results_says_so(features):
    with pytest.raises(InputError, match="results: no result of table-2 says how it was made; run reproduce.py"):
        reproduce.main(["--verify", "table-2", "--features", "f"])


MADE = {"command": "python reproduce.py table-2", "commit": "", "made_with": {}, "data": {}, "trained": {}}


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (3, "provenance is 3, not an object"),
        ({"commit": ""}, "provenance lacks command"),
        (MADE | {"command": 'python reproduce.py "'}, "No closing quotation"),
        (MADE | {"trained": {"a": {"settings": {}, "runs": {"seed0": {"answers": 1}}}}}, "answers is 1, not text"),
    ],
)
def test_verify_names_a_damaged_result(tmp_path, made, wanted):
    (tmp_path / "table-2.json").write_text(json.dumps({"provenance": made}))
    with pytest.raises(InputError, match=rf"table-2.json: not as it was written \(.*{wanted}.*\); restore it"):
        reproduce.main(["--verify", "table-2", "--results", str(tmp_path)])


def results_within(folder):
    """(path, content) of the results in a folder that say how they were made."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.rglob("*.json"))]
    return [(path, results) for path, results in found if "provenance" in results]


def rows_of(tree):
    """All parts of results that are of one run: dicts with "run" and "seeds"."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    own = [tree] if isinstance(tree, dict) and {"run", "seeds"} <= tree.keys() else []
    return own + [row for part in inner for row in rows_of(part)]


def contradictions(folder):
    """Models and rows of one setting, data, seed and backend that have more than one number in the results there."""
    numbers = {}
    for path, results in results_within(folder):
        where = json.dumps(results["provenance"]["made_with"], sort_keys=True)
        for name, own in results["provenance"]["trained"].items():
            for part, run in own["runs"].items():
                numbers.setdefault((name, part, where), {}).setdefault(json.dumps(run), []).append(path)
        for row in rows_of(results):
            for seed in row["seeds"]:
                found = json.dumps([seed["micro"], seed["macro"], row["steps"], row["budget"]])
                numbers.setdefault((row["run"], seed["seed"], where), {}).setdefault(found, []).append(path)
    return {key: found for key, found in numbers.items() if len(found) > 1}


def test_one_setting_has_one_number_wherever_printed(features, calls):
    assert not contradictions(ROOT / "results")
    made = {path: own["provenance"] for path, own in results_within(ROOT / "results")}
    entries = {path for path in (ROOT / "results").rglob("*.json") if path.stem not in ("benchmarks", "gpu")}
    assert not REMEASURED or entries == made.keys()
    one = [(own["commit"], own["made_with"]) for path, own in made.items() if path.stem != "demo"]  # on TensorFlow
    assert not REMEASURED or all(own == one[0] for own in one)
    for name in ("table-7", "figure-s2", "figure-5"):
        run_entry(name, "--seeds", "1")
    assert len(results_within(Path("results"))) == 3 and not contradictions(Path("results"))
    change = lambda results, model: results["arms"]["CE+HNM"]["seeds"][0].update(macro=0.9)  # noqa: E731
    tampered(results_of() / "figure-s2.json", change)
    ((what, found),) = contradictions(Path("results")).items()
    assert what[0].startswith("2-stage-few-CE-HNM-gen") and len(found) == 2


NUMBER = r"[-+]?\d+(?:\.\d+)?"


def prose(text):
    """Paragraphs and list items, without tables and code."""
    text = re.sub(r"<!-- results/.*?<!-- end -->|^```.*?^```|^\|.*?$|`[^`]*`", "", text, flags=re.S | re.M)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n|^\s*- ", text, flags=re.M)]


def not_printed(part, page):
    """Accuracies in a paragraph, pairs of micro / macro or decimals, that no line of the results it links to prints."""
    linked = [page.parent / path for path in re.findall(r"\]\(([^)#]*results/[^)#]*)\.(?:md|png)", part)]
    lines = [line for path in linked for line in path.with_suffix(".md").read_text(encoding="utf-8").splitlines()]
    printed = [[float(number) for number in re.findall(NUMBER, line)] for line in lines]
    said = re.sub(r"\]\([^)]*\)", "]", part)
    pairs = re.findall(rf"\b([1-9]\d*(?:\.\d+)?)(?: ± {NUMBER})? / ({NUMBER})", said)
    singles = [(number,) for number in re.findall(r"(?<![\d.])[-+]?\d+\.\d+(?![\d.]|e-)", said)] if linked else []
    return [own for own in pairs + singles if not any(all(rounds(number, line) for number in own) for line in printed)]


def rounds(number, line):
    """Whether a number of the line is that one, rounded as it is written."""
    half = 0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9
    return any(abs(float(number) - own) <= half for own in line)


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_numbers_in_prose_are_those_of_the_tables_that_it_links_to(page):
    parts = prose(page.read_text(encoding="utf-8"))
    assert not {part: found for part in parts if (found := not_printed(part, page))}


def test_a_number_that_no_table_prints_is_found(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "t.md").write_text("| CE | 64.3 ± 0.8 (59-69) | 58.5 ± 2.1 |\n| HNM | 65.1 | 60.7 |\n")
    right = "CE has 64.3 / 58.5, about 64 / 59 ([t](results/t.md)), mining 0.8 points more"
    assert not not_printed(right, tmp_path / "README.md")
    for wrong, said in {"64.3 / 60.7": ("64.3", "60.7"), "66": (), "66.1": ("66.1",)}.items():
        assert not_printed(f"CE has {wrong} ([t](results/t.md))", tmp_path / "README.md") == ([said] if said else [])
    assert not_printed("CE has 64.3 / 58.5", tmp_path / "README.md") == [("64.3", "58.5")]


@pytest.mark.slow
@pytest.mark.graph
def test_the_cheapest_result_is_what_this_code_measures(tmp_path, monkeypatch):
    """A minute: the other entries of a minute take the runs that those above them have made."""
    if not any(
        path.name == "wild.json" and path.parent.name == "results" for path, _ in results_within(ROOT / "results")
    ):
        pytest.skip("no result says how it was made")
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for own in ("data/zoo", "results"):
        Path(own).symlink_to(ROOT / own)
    reproduce.main(["--verify", "wild"])


# ---------------------------------------------------------------- README


def test_readme_and_results_show_what_was_measured():
    for path, results in results_within(ROOT / "results"):
        if path.stem in ENTRIES:
            lines = ENTRIES[path.stem].render(results)
            assert path.with_suffix(".md").read_text(encoding="utf-8").splitlines() == lines, path
    assert (ROOT / "results" / "summary.md").read_text(encoding="utf-8").splitlines() == readme.summarize(
        ROOT / "results"
    )
    texts = [page.read_text(encoding="utf-8") for page in readme.pages()]
    assert "<!-- results/summary.md -->" in texts[0]
    assert all(readme.fill(text, ROOT) == text for text in texts)


def test_links_of_the_readme_and_docs_lead_somewhere():
    def anchors(page):
        heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
        return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}

    links = 0
    for page in readme.pages():
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists() and (not anchor or anchor in anchors(found)), f"{page.name}: {target}"
            links += 1
    assert links > 50


def test_a_marked_place_gets_the_new_table(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| new \\1 |\n")
    text = (
        "before\n<!-- results/a.md -->\n| old |\n| rows |\n<!-- end -->\nbetween\n<!-- results/a.md -->\n<!-- end -->\n"
    )
    filled = "<!-- results/a.md -->\n| new \\1 |\n<!-- end -->\n"
    assert readme.fill(text, tmp_path) == f"before\n{filled}between\n{filled}"


def test_classes_are_spelled_as_the_papers():
    for level, arms in tables.LEVEL_ARMS.items():
        for arm in arms:
            theirs = paper.paper_values(paper.PAPER_TABLES[level], paper.paper_setting(arm, level))
            assert set(theirs) == {*class_names(level), "Overall"}
    assert {class_index("gen", name) for name in tables.GENVIDEO_TRAIN} == set(range(1, 11))
    assert len(LEVELS) == len(paper.paper_overall(ways.TWO_FEW))


# ---------------------------------------------------------------- slow: the stages themselves


@pytest.mark.slow
def test_entries_run_with_the_stages_themselves(tmp_path, monkeypatch):
    """On six simulated clips per generator and hardly a step of training: shared runs, T-Sigs, seen and unseen."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zoo").symlink_to(ROOT / "data" / "zoo")
    monkeypatch.setitem(datasets.SIMULATED, "zoo", (1, 60, {"few": 2, "pixel_steps": 2}))
    monkeypatch.setitem(PRESETS, "small", PRESETS["small"] | {"steps": 6, "warmup_steps": 2})
    small = ["--limit", "6", "--seeds", "1"]
    found = reproduce.main(["table-7", *small])
    assert all(
        arm["seeds"][0]["videos"] == found["arms"]["1-stage few CE"]["seeds"][0]["videos"]
        for arm in found["arms"].values()
    )
    runs = sorted(Path("runs/paper").rglob("*.keras"))
    assert reproduce.main(["table-7", *small]) == found and sorted(Path("runs/paper").rglob("*.keras")) == runs
    for name in ("figure-6", "figure-1a"):
        reproduce.main([name, *small])
        assert (Path("results/limit-6") / f"{name}.png").stat().st_size > 10000
    kinds = json.loads(Path("results/limit-6/figure-1a.json").read_text())["kinds"]
    assert [row["clips"] for row in kinds["unseen"][0]["trained"]] == [1]
