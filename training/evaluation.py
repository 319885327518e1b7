"""From a trained model to numbers and figures: predictions per video, metrics, the papers' tables, confusion matrix,
t-SNE and ROC. Metrics are functions of arrays; only the last section draws.
"""

import csv
import json
from collections import Counter

import matplotlib
import numpy as np

from common import HERE, class_index, class_names, load_generators
from tokens.dataset import Windows, read_batches, replace_whole
from training.devices import predict_on_batch

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first, for machines without a screen)

# ---------------------------------------------------------------- predictions


def predict(model, windows: Windows, batch_size=64):
    """Embedding (V, D) and class probabilities (V, C) of each video: the mean over its windows."""
    videos = int(windows.video[-1]) + 1
    embedding = np.zeros((videos, model.config["dim"]))
    probabilities = np.zeros((videos, model.config["num_classes"]))
    starts = range(0, len(windows), batch_size)
    places = [np.minimum(np.arange(start, start + batch_size), len(windows) - 1) for start in starts]  # one shape
    for start, place, tokens in zip(starts, places, read_batches(windows, places), strict=True):
        real = slice(0, min(batch_size, len(windows) - start))
        outputs = predict_on_batch(model, tokens)
        np.add.at(embedding, windows.video[place[real]], outputs["embedding"][real])
        np.add.at(probabilities, windows.video[place[real]], softmax(outputs["logits"][real]))
    count = np.bincount(windows.video)[:, None]
    return embedding / count, probabilities / count


def softmax(logits):
    """Probabilities (B, C) in float64."""
    powers = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def validation(model, windows, rows, batch_size):
    labels = np.array([row["label"] for row in rows])
    probabilities = predict(model, windows, batch_size)[1]
    scores = score(labels, probabilities, model.config["class_names"])
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "val_accuracy": scores["accuracy"],
        "val_macro_accuracy": scores["macro_accuracy"],
        "val_cross_entropy": -np.mean(np.log(np.maximum(likelihood, 1e-12))),
    }


def score(labels, probabilities, classes) -> dict:
    """The metrics of a set of videos from labels (V,) and probabilities (V, C). Macro: over the classes present."""
    labels, predicted = np.asarray(labels, int), np.argmax(probabilities, axis=1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, predicted), 1)
    videos, right = confusion.sum(axis=1), confusion.diagonal()
    recall = {name: right[i] / videos[i] if videos[i] else None for i, name in enumerate(classes)}
    metrics = {
        "classes": list(classes),
        "videos": len(labels),
        "accuracy": right.sum() / len(labels),
        "accuracy_interval": wilson_interval(right.sum(), len(labels)),
        "macro_accuracy": np.mean([value for value in recall.values() if value is not None]),
        "macro_interval": macro_interval(right[videos > 0], videos[videos > 0]),
        "majority": videos.max() / len(labels),
        "uniform": 1 / len(classes),
        "per_class": {name: {"videos": int(videos[i]), "accuracy": recall[name]} for i, name in enumerate(classes)},
        "confusion": confusion.tolist(),
    }
    if tuple(classes) == ("Real", "Fake"):
        from sklearn.metrics import roc_auc_score

        called_fake = confusion[:, 1].sum()
        metrics |= {"precision": right[1] / called_fake if called_fake else None, "recall": recall["Fake"]}
        metrics["auc"] = roc_auc_score(labels, probabilities[:, 1]) if videos.all() else None
    return json.loads(json.dumps(metrics, default=float))


def score_names(labels, called) -> dict:
    """Accuracies of test videos by the names (V,) of their classes and of what they are called; folds may be pooled.

    per_class is {name: [videos, right]}; chance is `majority` for micro and `uniform` for macro.
    """
    labels, right = np.asarray(labels), np.asarray(labels) == np.asarray(called)
    per_class = {name: [int((labels == name).sum()), int(right[labels == name].sum())] for name in np.unique(labels)}
    return {
        "videos": len(labels),
        "classes": len(per_class),
        "micro": float(right.mean()),
        "macro": float(np.mean([own / videos for videos, own in per_class.values()])),
        "majority": max(videos for videos, _ in per_class.values()) / len(labels),
        "uniform": 1 / len(per_class),
        "per_class": {str(name): counts for name, counts in per_class.items()},
    }


def wilson_interval(right, count, z=1.96):
    """The 95% Wilson score interval of a proportion."""
    p = right / count
    middle = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return [float(middle - half), float(middle + half)]


def macro_interval(right, count, z=1.96):
    """The 95% normal interval of the mean of classes' accuracies (C,), each with its own count (C,).

    The classes' variances are those of (right + 1) / (count + 2), so that a class of one video is not certain.
    """
    p = (right + 1) / (count + 2)
    half = z * np.sqrt(np.sum(p * (1 - p) / count)) / len(count)
    middle = np.mean(right / count)
    return [float(max(middle - half, 0)), float(min(middle + half, 1))]


def evaluate(model, videos, level, batch_size, windows=Windows) -> tuple[dict, dict]:
    """The metrics on test, and arrays over the videos of all roles: embedding (V, D), probabilities (V, C), video,
    generator, group, class (V,) and split (V,): train, val, test or unseen. `videos` is what choose_videos returns.
    """
    rows = [row | {"split": role} for role in ("train", "val", "test", "unseen") for row in getattr(videos, role)]
    embedding, probabilities = predict(model, windows(rows), batch_size)
    arrays = {
        "embedding": embedding.astype("float32"),
        "probabilities": probabilities.astype("float32"),
        "video": np.array([row["path"] for row in rows]),
        "generator": np.array([row["generator"] for row in rows]),
        "group": np.array([row["group"] for row in rows]),
        "class": np.array([videos.classes[row["label"]] if "label" in row else "unseen" for row in rows]),
        "split": np.array([row["split"] for row in rows]),
    }
    test, unseen = arrays["split"] == "test", arrays["split"] == "unseen"
    metrics = {"level": level} | score([row["label"] for row in videos.test], probabilities[test], videos.classes)
    called = np.array(videos.classes)[probabilities[unseen].argmax(axis=1)]
    metrics |= {"excluded": videos.excluded, "unseen": unseen_report(arrays["generator"][unseen], called)}
    return metrics | {"simulated": bool(model.config["features"].get("simulated"))}, arrays


def coarser(probabilities, classes, level):
    """GEN-L's probabilities (V, C) summed along the generator table: those of a level's classes (V, K), and the names.

    The share of generators that are Unknown or Mixed at the level is left out, so a row may sum to less than 1.
    """
    table, names = load_generators(), class_names(level)
    places = [class_index(level, generator, table) for generator in classes]
    present = sorted({place for place in places if place is not None})
    member = np.array([[place == own for own in present] for place in places], float)  # (C, K)
    return probabilities @ member, [names[place] for place in present]


def at_level(generators, level):
    """What generators (V,) are at a level, (V,); empty where Unknown or Mixed there, or outside the table."""
    table, names = load_generators(), (*class_names(level), "")
    places = {name: class_index(level, name, table) for name in set(generators.tolist())}
    return np.array([names[-1 if places[name] is None else places[name]] for name in generators.tolist()])


def unseen_report(generators, called):
    """What the model calls generators it never trained on: {generator: {videos, predicted: {class: videos}}}."""
    report = {}
    for (generator, name), count in Counter(zip(generators.tolist(), called.tolist(), strict=True)).items():
        entry = report.setdefault(generator, {"videos": 0, "predicted": {}})
        entry["videos"] += count
        entry["predicted"][name] = count
    return report


# ---------------------------------------------------------------- tables

PAPER_TABLES = {"task": "2 TASK-L", "sd": "3 SD-L", "team": "6 TEAM-L", "gen": "7 GEN-L"}


def title(metrics, what="", videos="test videos"):
    """What a table or figure shows, of which videos, and that it is simulated where it is."""
    simulated = ", simulated" * metrics["simulated"]
    return f"{metrics['level'].upper()}-L, {metrics['videos']} {videos}{simulated}{what}"


def paper_columns(level, classes):
    """The paper's accuracies {setting: {row: per cent}} at a level; empty when the classes are not the paper's."""
    columns = {}
    for line in paper_lines(PAPER_TABLES.get(level)):
        columns.setdefault(line["setting"], {})[line["row"]] = float(line["value"])
    same = columns and all(set(classes) == set(column) - {"Overall"} for column in columns.values())
    return columns if same else {}


def paper_lines(table):
    with open(HERE / "experiments" / "paper_results.csv", newline="", encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if line["table"] == table]


def print_results(metrics):
    """The table of a level as the paper prints it, with the paper's columns beside ours when the classes match."""
    columns = paper_columns(metrics["level"], metrics["classes"])
    names = [*metrics["classes"], "Overall (micro)", "Overall (macro)"]
    width = max(map(len, names))
    print("\n" + title(metrics, ", per cent" + "; on the right the paper's, on GenVideo" * bool(columns)))
    print("  ".join([f"{'class':{width}} {'videos':>6} {'ours':>6}", *columns]))
    ours = [*metrics["per_class"].values()]
    ours += [{"videos": metrics["videos"], "accuracy": metrics[key]} for key in ("accuracy", "macro_accuracy")]
    for name, entry in zip(names, ours, strict=True):
        theirs = (f"{column.get(name, column['Overall']):{len(key)}.2f}" for key, column in columns.items())
        print("  ".join([f"{name:{width}} {entry['videos']:6} {percent(entry['accuracy'])}", *theirs]))
    for name, key in (("micro", "accuracy_interval"), ("macro", "macro_interval")):
        low, high = metrics[key]
        print(f"95% interval of {name}: {percent(low)} to {percent(high)}")
    print(f"chance: micro {percent(metrics['majority'])} (largest class), macro {percent(metrics['uniform'])}")
    if "precision" in metrics:
        print(f"Fake: precision {percent(metrics['precision'])}, recall {percent(metrics['recall'])}")
        theirs = [line for line in paper_lines("4 BIN-L") if line["row"].startswith("all 80%")]
        print("the paper's, all of GenVideo: " + ", ".join(f"{line['setting']} {line['value']}" for line in theirs))
    for generator, videos in metrics["excluded"].items():
        print(f"left out, Unknown or Mixed at this level: {generator}, {videos} videos")
    for generator, entry in metrics["unseen"].items():
        called = ", ".join(f"{name} {count}" for name, count in Counter(entry["predicted"]).most_common(3))
        print(f"unseen: {generator}, {entry['videos']} videos, called {called}")


def percent(value):
    return f"{100 * value:6.2f}" if value is not None else "     -"


# ---------------------------------------------------------------- figures


def save_figure(figure, path):
    replace_whole(path, lambda file: figure.savefig(file, dpi=120, bbox_inches="tight"), suffix=".png")
    plt.close(figure)


def confusion_figure(metrics, path):
    """Confusion matrix: rows true, columns predicted, coloured by the row's share, labelled by videos."""
    confusion, classes = np.array(metrics["confusion"]), metrics["classes"]
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.36 * len(classes)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    for (i, j), count in np.ndenumerate(confusion):
        if count:
            axes.text(
                j, i, count, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.5 else "black"
            )
    axes.set(xlabel="predicted", ylabel="true", title=title(metrics))
    save_figure(figure, path)


TSNE_VIDEOS = 5000  # drawn of larger sets; t-SNE's time grows faster than they do


def drawable(embedding):
    """Whether t-SNE has five videos (V, D) and not all at one point."""
    return len(embedding) >= 5 and embedding.std(axis=0).max() > 1e-6


def tsne_figure(embedding, groups, metrics, what, path):
    figure, axes = plt.subplots(figsize=(7, 6))
    tsne_panel(axes, embedding, groups, title(metrics, f", t-SNE by {what}"))
    save_figure(figure, path)


def tsne_panel(axes, embedding, groups, heading):
    """t-SNE of embeddings (V, D), coloured by group (V,), as the paper's Fig. 4 and 5. Needs at least 5 videos."""
    from sklearn.manifold import TSNE

    places = TSNE(perplexity=min(30, (len(embedding) - 1) / 3), init="pca", random_state=0).fit_transform(embedding)
    names = sorted(set(groups), key=lambda name: (name != "Real", name))
    colours = plt.get_cmap("tab20")
    for i, name in enumerate(names):
        chosen = np.asarray(groups) == name
        axes.scatter(*places[chosen].T, s=14, color=colours(i % 20), marker="os^"[i % 3], label=name)
    axes.legend(fontsize=7, ncols=1 + len(names) // 21, bbox_to_anchor=(1.01, 1), loc="upper left")
    axes.set(xticks=[], yticks=[], title=heading)


def roc_figure(labels, fake_probability, metrics, path):
    """ROC of Fake against Real (BIN-L) from labels (V,) and the probability of Fake (V,)."""
    from sklearn.metrics import roc_curve

    false_alarms, hits, _ = roc_curve(labels, fake_probability)
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.plot(false_alarms, hits, label=f"area {metrics['auc']:.3f}")
    axes.plot([0, 1], [0, 1], "k:", label="chance, 0.5")
    axes.set(xlabel="Real called Fake", ylabel="Fake found", title=title(metrics))
    axes.legend()
    save_figure(figure, path)


def draw_figures(metrics, arrays, run):
    """All figures of a level into the run's folder; t-SNE needs five different videos, ROC both classes."""
    stem, test = f"{run}/{metrics['level']}", arrays["split"] == "test"
    confusion_figure(metrics, f"{stem}_confusion.png")
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(test))[:TSNE_VIDEOS]
    if drawable(arrays["embedding"][drawn]):
        for what in ("class", "generator"):
            tsne_figure(arrays["embedding"][drawn], arrays[what][drawn], metrics, what, f"{stem}_tsne_{what}.png")
    labels = arrays["class"][test] == "Fake"
    if metrics["level"] == "bin" and 0 < labels.sum() < len(labels):
        roc_figure(labels, arrays["probabilities"][test, 1], metrics, f"{stem}_roc.png")
