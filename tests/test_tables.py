"""The papers' tables and figures: ways to train, pooled folds, the paper's numbers in their places, T-Sigs of several
folds, and every entry from end to end with stages that only pretend.
"""

import csv
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import reproduce
from common import HERE, LEVELS, class_index, class_names, load_generators
from experiments import ablations, figures, readme, stages, tables
from experiments import compared as rivals
from experiments import datasets as corpora
from experiments import registry as paper
from experiments import unseen as open_set
from report import scores as unknown
from tokens.dataset import features_file, write_features, write_index, write_json
from training.callbacks import CollapseError
from training.evaluation import score_names

GENERATORS = tuple(load_generators())
CLIPS = 12  # of each generator


# ---------------------------------------------------------------- stages that only pretend


@pytest.fixture
def features(tmp_path, monkeypatch):
    """Features of every generator, 3 clips for test, 1 for val, 8 to train, opened for the mean token alone."""
    monkeypatch.chdir(tmp_path)
    random, rows = np.random.default_rng(0), []
    for generator in GENERATORS:
        for i in range(CLIPS):
            path = f"{generator}/{i}.mp4"
            write_features(
                features_file("f", path), random.normal(size=(1, 8, 1, 12)), np.zeros((1, 8)), np.ones((1, 8), bool)
            )
            row = dict(path=path, generator=generator, group=path, stratum="", fps=8, size="8x8", length=1, error="")
            split = "test" if i % 4 == 0 else "val" if i == 1 else "train"
            rows.append(row | dict(windows=1, container="mp4", source=path, split=split))
    write_index("f/index-1-of-1.csv", rows)
    write_json("f/recipe.json", dict(encoder="invented", frames=8, tokens=1, dim=12, simulated=True))
    return Path("f")


@pytest.fixture
def calls(monkeypatch):
    """What the stages were called with, in order; they leave artifacts of random numbers. `right` sets how often a
    level's clips are called by their name.
    """
    made = SimpleNamespace(list=[], right=0.5, collapse=lambda flags: False)

    def pretend(name, *arguments):
        arguments = [str(argument) for argument in arguments]
        args = importlib.import_module(name).get_args(arguments)
        made.list.append((name, args))
        level = getattr(args, "level", "bin")
        if name == "04_tsigs":
            return pretend_tsigs(args)
        if made.collapse(args):
            raise CollapseError("collapsed")
        return pretend_fit(args, level, made.right)

    monkeypatch.setattr(stages, "stage", pretend)
    monkeypatch.setattr(figures, "stage", pretend)
    monkeypatch.setattr(corpora, "stage", pretend)
    monkeypatch.setattr(figures, "REPEATS", 3)
    monkeypatch.setattr(open_set, "DRAWS", 1)
    monkeypatch.setattr(rivals, "PROBES", dict.fromkeys(rivals.PROBES, call_all_real))
    return made


def call_all_real(videos, seed):
    return np.eye(len(videos.classes))[[0] * len(videos.test)]


def pretend_fit(args, level, right):
    given = [
        flag
        for key, value in vars(args).items()
        if key == "fold" and value
        for flag in ("--fold", "{}/{}".format(*value))
    ]
    flags = ["--features", args.features, *given, *([] if level == "bin" else ["--level", level])]
    for key in ("train_generators", "test_generators"):
        if getattr(args, key):
            flags += [f"--{key.replace('_', '-')}", ",".join(getattr(args, key))]
    videos = stages.chosen_videos(level, *flags)
    run, random = Path(args.run), np.random.default_rng(args.seed)
    run.mkdir(parents=True, exist_ok=True)
    rows = [row | {"split": role} for role in ("train", "val", "test", "unseen") for row in getattr(videos, role)]
    classes = len(videos.classes)
    labels = np.array([row.get("label", 0) for row in rows])
    called = np.where(random.random(len(rows)) < right, labels, random.integers(classes, size=len(rows)))
    names = [videos.classes[row["label"]] if row["split"] != "unseen" else "unseen" for row in rows]
    np.savez(
        run / f"{level}_embeddings.npz",
        probabilities=np.eye(classes)[called],
        embedding=random.normal(size=(len(rows), 12)),
        video=np.array([row["path"] for row in rows]),
        generator=np.array([row["generator"] for row in rows]),
        group=np.array([row["group"] for row in rows]),
        split=np.array([row["split"] for row in rows]),
        recipe=json.dumps({"level": level, "arguments": {}, "features": {"encoder": "invented"}, "index_sha256": "0"}),
        **{"class": np.array(names)},
    )
    metrics = dict(
        classes=list(videos.classes), videos=len(videos.test), accuracy=0.9, macro_accuracy=0.8, majority=0.75
    )
    recipe = {"arguments": vars(args), "features": json.loads(Path("f/recipe.json").read_text()), "seconds": 9}
    write_json(run / f"{level}.json", metrics | dict(precision=0.95, recall=0.94, auc=0.97, recipe=recipe))
    (run / f"{level}.keras").touch()
    history = {
        "loss": 1,
        **({"embedding_loss": 0.2, "logits_loss": 0.8} if getattr(args, "loss", "ce") != "ce" else {}),
    }
    with open(run / f"{level}_history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(history))
        writer.writeheader()
        writer.writerow(history)
    return metrics


def pretend_tsigs(args):
    """Maps of noise around one of each class, as 04 keeps them."""
    with np.load(Path(args.run) / f"{args.level}_embeddings.npz") as arrays:
        names = np.where(arrays["split"] == "unseen", arrays["generator"], arrays["class"])
        kept = {key: arrays[key] for key in ("video", "generator", "split")} | {
            "group": arrays["video"],
            "class": names,
        }
        seen = set(arrays["class"].tolist()) - {"unseen"}
    random, classes = np.random.default_rng(args.seed), sorted(set(names.tolist()))
    centres = {name: random.random((8, 8)) for name in classes}
    maps = np.stack([centres[name] + random.normal(size=(8, 8)) / 100 for name in names])
    kept["stratum"] = np.where(np.arange(len(names)) % 2, "odd", "even")
    kept |= dict(classes=np.array(classes), seen=np.array([name in seen for name in classes]), maps=maps)
    np.savez(Path(args.run) / f"{args.level}_tsigs.npz", grand_mean=maps.mean(axis=0), **kept)
    for what in ("unseen", "strata"):
        (Path(args.run) / f"{args.level}_tsigs_{what}.png").touch()
    row = dict(clips=1, classes=20.0, chance=0.05, accuracy=0.5, within=0.4, between=0.1)
    measured = {name: [row] for name in (*figures.CONDITIONS, "across strata")}
    per_class = {name: {"seen": name in seen} for name in classes}
    return {"tables": measured, "strata": {"source": "k-means, a stand-in"}, "per_class": per_class}


def run_entry(name, *more):
    return reproduce.main([name, "--features", "f", *more])


# ---------------------------------------------------------------- every entry

# Six of the seven ablations differ in their data alone, and `ablation` measures them all; wild's and report have their
# own tests.
ALIKE = {name for name in paper.ENTRIES if name.startswith(("ablation-", "wild", "report"))}
ALIKE -= {"ablation-depth", "wild-video"}


@pytest.mark.parametrize("name", [name for name in paper.ENTRIES if name not in ALIKE])
def test_entry_leaves_no_table_or_other_numbers_than_it_measured(features, calls, name, monkeypatch):
    if name != "figure-1b":  # eleven more t-SNEs would only take time
        monkeypatch.setattr(figures, "tsne_panel", lambda axes, *panel: axes.set(title=panel[-1]))
    results = run_entry(name, "--seeds", "2")
    folder = Path("results") if paper.ENTRIES[name].several else Path("results/f")
    assert json.loads((folder / f"{name}.json").read_text()) == json.loads(json.dumps(results))
    lines = (folder / f"{name}.md").read_text().splitlines()
    assert lines == paper.ENTRIES[name].render(json.loads((folder / f"{name}.json").read_text()))
    tables_of_it = [line for line in lines if line.startswith("|")]
    assert len(tables_of_it) > 2 and not any("nan" in line for line in lines)
    columns = {}
    for line in tables_of_it:
        columns.setdefault(line.count("|"), []).append(line)
    assert all(len(own) >= 3 for own in columns.values())  # header, rule, a row: every line as wide as its header
    assert (folder / f"{name}.png").exists() == (paper.ENTRIES[name].draw is not None)


@pytest.mark.parametrize("name", [name for name, entry in paper.ENTRIES.items() if entry.folds and name not in ALIKE])
def test_entry_does_not_pool_folds(features, calls, name):
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


def test_a_collapse_ends_the_entry_or_is_hidden(features, calls):
    calls.collapse = lambda args: getattr(args, "loss", "") == "hnm" and args.seed == 1
    results = run_entry("table-7", "--seeds", "2")
    assert results["arms"]["2-stage few CE"]["collapsed"] == 0
    assert results["arms"]["2-stage few CE+HNM"]["collapsed"] == 1
    row = next(
        line for line in Path("results/f/table-7.md").read_text().splitlines() if "| 2-stage few CE+HNM |" in line
    )
    assert "1 (1 collapsed)" in row
    calls.collapse = lambda args: getattr(args, "loss", "") == "hnm"
    for name in ("ablation-margin", "figure-1c", "figure-s1"):
        run_entry(name, "--seeds", "1")
        assert "0 (1 collapsed)" in Path(f"results/f/{name}.md").read_text()
    for name in ("figure-5", "back-off", "table-s2"):
        run_entry(name, "--seeds", "1")
    assert run_entry("ablation", "--seeds", "1")["rows"][0]["collapsed"] == 1
    assert "| collapsed (1) |" in Path("results/f/ablation.md").read_text()


def test_generators_outside_the_table_are_not_scored(features, calls, monkeypatch):
    rows = tables.read_index("f")
    for name in ("Elsewhere", "Abroad"):
        (features / name).symlink_to((features / "SVD").resolve())
        outside = [row for row in rows if row["generator"] == "SVD"]
        rows = rows + [row | {"path": row["path"].replace("SVD", name), "generator": name} for row in outside]
    for row in rows:
        row["group"] = row["path"]
    write_index("f/index-1-of-1.csv", rows)
    found, random = [], np.random.default_rng(0)

    def scores_of(run, names):
        found.append(run)
        one = unknown.LeftOut(random.normal(size=9), random.normal(size=9), np.arange(9), np.arange(9))
        return {"energy": dict.fromkeys(names, one)}

    monkeypatch.setattr(open_set, "scores_of", scores_of)
    results = run_entry("unseen-generators", "--folds", "2", "--seeds", "2")
    assert [run.name for run in found] == [f"seed{seed}-fold{fold}" for seed in (0, 1) for fold in (1, 2)]
    assert list(results["scores"][0]["generators"]) == ["Abroad", "Elsewhere"]
    assert (
        "| score | mean AUROC | mean FPR at 95% TPR | Abroad | Elsewhere |"
        in Path("results/f/unseen-scores.md").read_text().splitlines()
    )
    signatures = [args for name, args in calls.list if name == "04_tsigs"]
    assert {tuple(args.splits) for args in signatures} == {("train", "test", "unseen")}
    write_index("f/index-1-of-1.csv", [row for row in rows if row["generator"] != "Abroad"])
    with pytest.raises(ValueError, match="clips of 1 generators outside the table; it takes two"):
        run_entry("unseen-generators")


# ---------------------------------------------------------------- ways to train


def test_an_arm_trains_in_another_way(features, calls):
    run_entry("table-7", "--seeds", "2", "--few", "4")
    fits = [args for name, args in calls.list if name == "03_attribute"]
    assert len(fits) == 12
    for seed in (0, 1):
        found = {(args.init == "scratch", args.labels_per_class, args.loss) for args in fits if args.seed == seed}
        assert found == {
            (start, labels, loss) for start, labels in ((True, 4), (False, 4), (True, "all")) for loss in ("ce", "hnm")
        }
    for args in fits:
        assert (args.batch_size, args.learning_rate, args.decay_steps) == (32, 3e-4, 0)
        assert args.normalize == (args.loss == "hnm")
        if args.init != "scratch":
            first = [other for name, other in calls.list if name == "02_pretrain_binary" and other.seed == args.seed]
            assert {str(Path(other.run) / "bin.keras") for other in first} == {args.init}
    assert len({args.run for args in fits}) == 12


def test_an_ablation_changes_another_stage_or_trains_what_is_there(features, calls):
    run_entry("table-7", "--seeds", "1")
    plain = {args.run for _, args in calls.list}
    changes = {
        "margin": ("margin", {0.5, 1, 2, 5, -1}),
        "positives": ("positives", {"hardest", "random"}),
        "batching": ("batching", {"pk"}),
        "depth": ("temporal_blocks", {2, 12}),
    }
    for what, (flag, wanted) in changes.items():
        calls.list.clear()
        run_entry(f"ablation-{what}", "--seeds", "1")
        new = [(name, args) for name, args in calls.list if args.run not in plain]
        assert {getattr(args, flag) for name, args in new if name == "03_attribute"} == wanted
        first = {getattr(args, flag) for name, args in new if name == "02_pretrain_binary"}
        assert first == (wanted if what == "depth" else set())
        default = importlib.import_module("03_attribute").get_args([])
        for _, args in new:
            assert args.temporal_blocks == default.temporal_blocks or what == "depth"
    calls.list.clear()
    run_entry("ablation-schedule", "--seeds", "1")
    epochs = {(args.learning_rate, args.loss): set() for name, args in calls.list if name == "03_attribute"}
    for name, args in calls.list:
        if name == "03_attribute":
            epochs[args.learning_rate, args.loss].add(args.epochs)
    assert len(epochs) == 4 and all(max(own) == 4 * min(own) for own in epochs.values())


def test_labels_of_the_curve_are_not_those_trained_on(features, calls):
    results = run_entry("figure-s1", "--seeds", "1", "--few", "3")
    curve = results["curves"]["gen"]
    assert [(point["labels"], point["videos"]) for point in curve] == [(3, 60), (5, 100), ("all", 160)]
    team = [(point["labels"], point["videos"]) for point in results["curves"]["team"]]
    assert team[:2] == [(3, 45), (5, 75)] and team[-1] == ("all", 160)
    fits = {args.labels_per_class for name, args in calls.list if name == "03_attribute" and args.level == "gen"}
    assert fits == {3, 5, "all"}
    assert {args.init == "scratch" for name, args in calls.list if name == "03_attribute"} == {False}


def test_detectors_see_other_clips_or_are_asked_without_any(features, calls, monkeypatch):
    asked = []

    def pretend(name, videos, root, run, seed, equalize, steps, full):
        assert (equalize, steps, full) == (None, corpora.ZOO["steps"]["pixels"], False)
        asked.append((name, {row["path"] for row in videos.train + videos.val}, root, run))
        run.mkdir(parents=True, exist_ok=True)
        names = np.array([videos.classes[row["label"]] for row in videos.test])
        arrays = {"class": names, "generator": names, "split": np.full(len(names), "test")}
        np.savez(run / "gen_embeddings.npz", probabilities=call_all_real(videos, 0), **arrays)
        facts = {"classes": list(videos.classes), "parameters": 5, "seconds": 1, "steps": steps}
        write_json(run / "gen.json", facts)
        return run

    monkeypatch.setattr(rivals, "detect", pretend)
    with pytest.raises(ValueError, match=r"clips/Crafter/0.mp4 is missing; name the folder of the clips with --videos"):
        run_entry("table-s2", "--seeds", "1", "--videos", "clips")
    assert not calls.list
    for row in tables.read_index("f"):
        clip = Path("clips") / row["source"]
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.touch()
    assert not set(rivals.DETECTORS) & set(run_entry("table-s2", "--seeds", "1")["methods"])
    assert rivals.NO_PIXELS in Path("results/f/table-s2.md").read_text()
    results = run_entry("table-s2", "--seeds", "2", "--videos", "clips")
    assert [name for name, *_ in asked] == [name for name in rivals.DETECTORS for _ in (0, 1)]
    assert len({run for *_, run in asked}) == len(asked)
    trained = {row["path"] for row in tables.read_index("f") if row["split"] != "test"}
    assert all(own == trained and root == Path("clips") for _, own, root, _ in asked)
    for level in rivals.RIVAL_LEVELS:  # all called Real
        for seed in results["methods"]["NPR"]["levels"][level]["seeds"]:
            assert seed["macro"] == pytest.approx(1 / seed["classes"])
            assert seed["per_class"]["Real"] == [3, 3]


def test_full_is_not_the_papers_setting(features, calls):
    run_entry("table-7", "--seeds", "1", "--full")
    defaults = importlib.import_module("03_attribute").get_args([])
    for name, args in calls.list:
        for key in ("batch_size", "learning_rate", "decay_steps", "epochs", "best"):
            assert getattr(args, key) == getattr(defaults, key)
        if name == "03_attribute":
            assert args.labels_per_class in (500, "all")
            assert (args.normalize, args.margin, args.ce_weight) == (False, 1, 0.5)


def test_runs_of_other_features_or_settings_share_a_folder(features, calls):
    def folders(*more):
        calls.list.clear()
        run_entry("table-2", "--seeds", "1", *more)
        return {args.run for _, args in calls.list}

    first = folders()
    assert first == folders()
    assert first.isdisjoint(folders("--full"))
    few = folders("--few", "3")
    assert len(first & few) == 2 and len(few - first) == 2  # stage 1 and all labels are shared
    recipe = json.loads(Path("f/recipe.json").read_text())
    write_json("f/recipe.json", recipe | {"git": "other", "versions": {}})
    assert first == folders()
    write_json("f/recipe.json", recipe | {"pool": 2})
    assert first.isdisjoint(folders())


def test_small_run_takes_all_clips_or_overwrites_results(features, calls):
    run_entry("figure-6", "--seeds", "1", "--limit", "2")
    assert {args.limit for _, args in calls.list} == {2}
    assert Path("results/limit-2/f/figure-6.md").exists() and not Path("results/f").exists()
    run_entry("table-2", "--seeds", "1", "--full")
    assert Path("results/full/f/table-2.md").exists() and not Path("results/f").exists()


def test_few_labels_train_for_other_steps_than_said(features, calls):
    run_entry("table-7", "--seeds", "1")
    for name, args in calls.list:
        few = args.labels_per_class != "all"
        windows = len(GENERATORS) * (8 if not few else min(args.labels_per_class, 8))
        wanted = corpora.ZOO["steps"]["few" if few else "all"]
        assert args.epochs == min(60, -(-wanted // (windows // 32))), name


# ---------------------------------------------------------------- numbers


def test_pooled_names_are_scored_wrongly():
    labels, called = ["a", "a", "a", "b"], ["a", "b", "a", "a"]
    found = score_names(labels, called)
    assert (found["videos"], found["classes"], found["majority"], found["uniform"]) == (4, 2, 0.75, 0.5)
    assert (found["micro"], found["macro"]) == (0.5, pytest.approx((2 / 3 + 0) / 2))
    assert found["per_class"] == {"a": [3, 2], "b": [1, 0]}


def test_mean_and_deviation_are_not_those_of_a_table():
    assert tables.mean_std([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
    assert tables.mean_std([0.5]) == "50.0"
    assert tables.mean_std([]) == tables.mean_std([None]) == "-"


def test_facts_of_a_run_differ_from_those_by_loops(tmp_path):
    random = np.random.default_rng(0)
    embedding, names = random.normal(size=(30, 5)), np.array(list("abc") * 10)
    split = np.array(["test"] * 24 + ["train"] * 6)
    np.savez(tmp_path / "gen_embeddings.npz", embedding=embedding, split=split, **{"class": names})
    (tmp_path / "gen_history.csv").write_text("loss,logits_loss,embedding_loss\n9,8,7\n3,2,1\n")
    recipe = {"arguments": {"temporal_blocks": 2}, "features": {"frames": 8, "tokens": 1, "dim": 12}, "seconds": 7}
    write_json(tmp_path / "gen.json", {"classes": ["a", "b", "c"], "recipe": recipe})
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
    assert found["spread"] == pytest.approx(
        np.mean([np.sum((v - centre) ** 2) for v in embedding[:24]]) / np.mean(lengths)
    )
    assert (found["cross_entropy"], found["mined_loss"]) == (2, 1)


def test_neighbours_of_noise_look_like_those_of_clusters():
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
        runs.append((None, None, arrays | {"grand_mean": mean if shift else 0 * mean}))
    return runs


def test_folds_whose_models_attend_differently_hide_a_signature():
    found = figures.signature_tables(fold_runs(shift=True), seed=0)
    assert found["trained"][0]["accuracy"] > 0.9 > 0.5 > found["labels permuted"][0]["accuracy"]
    assert figures.signature_tables(fold_runs(shift=False), seed=0)["trained"][0]["accuracy"] < 0.8


# ---------------------------------------------------------------- the paper's numbers


def test_splits_are_not_the_papers(features):
    data = corpora.choose_data(reproduce.get_args(["table-4", "--features", "f"]))[0]
    sizes = {}
    for split, chosen in tables.SPLITS.items():
        if chosen:
            sizes[split] = tuple(len(tables.generators_of(data, side)) for side in chosen)
    assert list(sizes.values()) == [(10, 9), (12, 4), (6, 5), (7, 12)]  # the paper prints 8 and 11 for the last
    for split in sizes:
        trained, tested = (tables.generators_of(data, side) for side in tables.SPLITS[split])
        assert set(trained).isdisjoint(tested)
    with open(HERE / "paper_results.csv", newline="") as file:
        rows = {line["row"] for line in csv.DictReader(file) if line["table"] == "4 BIN-L"}
    assert rows == set(tables.SPLITS)


def test_features_without_a_side_of_a_split_end_the_entry(features, calls):
    kept = [row for row in tables.read_index("f") if row["generator"] in ("Real", "SVD", "Lavie", "Sora")]
    write_index("f/index-1-of-1.csv", kept)
    found = run_entry("table-4", "--seeds", "1")["splits"]
    assert "T2V (12) -> I2V (4)" in found and "SD 2.1 (6) -> other known SD backbones (5)" in found
    write_index("f/index-1-of-1.csv", [row for row in kept if row["generator"] != "SVD"])
    assert "T2V (12) -> I2V (4)" not in run_entry("table-4", "--seeds", "1")["splits"]


def line_of(name, start):
    return next(line for line in Path(f"results/f/{name}.md").read_text().splitlines() if line.startswith(start))


def test_the_papers_number_stands_beside_another_setting(features, calls):
    for name in ("table-2", "table-3", "table-6", "table-7", "table-4", "figure-s2"):
        run_entry(name, "--seeds", "1")
    overall = {"1-stage few CE": 24.55, "1-stage few CE+HNM": 65.80, "2-stage few CE": 55.13}
    overall |= {"2-stage few CE+HNM": 94.99, "1-stage all CE": 70.51, "1-stage all CE+HNM": 97.41}
    for arm, value in overall.items():
        assert line_of("table-7", f"| {arm} |").endswith(f"| {value:.2f} |")
    row = [cell.split("(")[-1].strip(") ") for cell in line_of("table-7", "| DynamiCrafter |").split("|")[3:-1]]
    assert row == ["0.00", "0.00", "0.20", "56.64", "99.53", "75.58"]
    assert line_of("table-2", "| 1-stage few CE+HNM |").endswith("| 82.41 |")
    assert line_of("table-3", "| 2-stage few CE+HNM |").endswith("| 98.49 |")
    assert line_of("table-6", "| 1-stage all CE+HNM |").endswith("| 94.94 |")
    assert "(13.33)" in line_of("table-6", "| OpenAI |").split("|")[3]
    assert line_of("table-4", "| SD 2.1 (6)").endswith("| 99.94 / 99.90 / 99.96 |")
    assert line_of("figure-s2", "| CE+semi-HNM |").endswith("| 70.13 |")
    assert line_of("figure-s2", "| Sora |").count("(") == 2  # CE 93.33, HNM 73.33


def test_radar_shows_other_numbers_than_the_tables():
    assert figures.paper_overall("2-stage 0.5%") == {
        "bin": 99.94,
        "task": 98.20,
        "sd": 98.49,
        "team": 97.77,
        "gen": 94.99,
    }
    assert figures.paper_overall("1-stage 100%")["gen"] == 97.41
    assert figures.paper_overall("1-stage 0.5%")["bin"] is None  # the paper has no BIN-L with few labels


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
def test_bad_input_is_not_told_in_a_line(features, arguments, message):
    with pytest.raises(ValueError, match=message):
        reproduce.main([*arguments, "--seeds", "1"])


def test_missing_test_features_are_told_after_training(features, calls):
    with pytest.raises(ValueError, match="gone: no recipe.json; run 01_extract_features.py"):
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
        ["corpus", "--features", "f"],
    ],
)
def test_wrong_arguments_do_not_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(arguments)
    assert ended.value.code == 2
    capsys.readouterr()


def test_name_in_two_words_is_another_entry():
    assert reproduce.get_args(["ablation", "margin"]).name == "ablation-margin"
    assert reproduce.get_args(["ablation"]).name == "ablation"


def test_list_misses_an_experiment_or_what_it_needs(capsys):
    reproduce.main(["--list"])
    printed = capsys.readouterr().out
    for name, entry in paper.ENTRIES.items():
        assert f"\n{name}" in f"\n{printed}" and entry.minutes > 0 and entry.paper in printed
    assert all(f"\n{name}" in printed for name in reproduce.OTHERS)
    makefile = (HERE / "Makefile").read_text()
    assert all(f" {name}" in makefile for name in paper.ENTRIES)


# ---------------------------------------------------------------- README


def test_readme_or_a_table_in_results_differs_from_what_was_measured():
    for path in (HERE / "results").rglob("*.json"):
        if path.stem in paper.ENTRIES:
            lines = paper.ENTRIES[path.stem].render(json.loads(path.read_text(encoding="utf-8")))
            assert path.with_suffix(".md").read_text(encoding="utf-8").splitlines() == lines, path
    assert (HERE / "results" / "summary.md").read_text(encoding="utf-8").splitlines() == readme.summarize(
        HERE / "results"
    )
    texts = [page.read_text(encoding="utf-8") for page in readme.pages()]
    assert "<!-- results/summary.md -->" in texts[0]
    assert all(readme.fill(text, HERE) == text for text in texts)


def test_a_link_of_the_readme_or_of_docs_leads_nowhere():
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


def test_marked_place_keeps_an_old_table(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| new \\1 |\n")
    text = (
        "before\n<!-- results/a.md -->\n| old |\n| rows |\n<!-- end -->\nbetween\n<!-- results/a.md -->\n<!-- end -->\n"
    )
    filled = "<!-- results/a.md -->\n| new \\1 |\n<!-- end -->\n"
    assert readme.fill(text, tmp_path) == f"before\n{filled}between\n{filled}"


def test_classes_of_the_table_are_spelled_otherwise_than_the_papers():
    for level, arms in tables.LEVEL_ARMS.items():
        for arm in arms:
            theirs = tables.paper_values(tables.PAPER_TABLES[level], tables.paper_setting(arm, level))
            assert set(theirs) == {*class_names(level), "Overall"}
    assert {class_index("gen", name) for name in tables.GENVIDEO_TRAIN} == set(range(1, 11))
    assert len(LEVELS) == len(figures.paper_overall("2-stage 0.5%"))


# ---------------------------------------------------------------- slow: the stages themselves


@pytest.mark.slow
def test_entries_fail_with_the_stages_themselves(tmp_path, monkeypatch):
    """On six simulated clips per generator and hardly a step of training: shared runs, T-Sigs, seen and unseen."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zoo").symlink_to(HERE / "data" / "zoo")
    monkeypatch.setitem(corpora.SIMULATED, "zoo", (1, {"few": 2, "steps": {"few": 2, "all": 2, "pixels": 2}}))
    small = ["--limit", "6", "--seeds", "1"]
    found = reproduce.main(["table-7", *small])
    assert all(
        arm["seeds"][0]["videos"] == found["arms"]["1-stage few CE"]["seeds"][0]["videos"]
        for arm in found["arms"].values()
    )
    runs = sorted(Path("runs/paper").rglob("*.keras"))
    assert reproduce.main(["table-7", *small]) == found and sorted(Path("runs/paper").rglob("*.keras")) == runs
    for name in ("figure-6", "figure-1a", "figure-1b"):
        reproduce.main([name, *small])
        assert (Path("results/limit-6") / f"{name}.png").stat().st_size > 10000
    rival = reproduce.main(["table-s2", *small])["methods"]
    assert {method["levels"]["gen"]["seeds"][0]["videos"] for method in rival.values()} == {
        found["arms"]["1-stage few CE"]["seeds"][0]["videos"]
    }
    kinds = json.loads(Path("results/limit-6/figure-1a.json").read_text())["kinds"]
    assert [row["clips"] for row in kinds["unseen"][0]["trained"]] == [1]
