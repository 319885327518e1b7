"""Evaluate a trained model: predictions per video, metrics as functions of arrays, and their printing.

for numbers, outputs in batch_outputs(model, Windows(rows), 64): outputs["embedding"]      (b, D)
"""

import json
from collections import Counter

import numpy as np
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import confusion_matrix, roc_auc_score

from basics.running import InputError
from basics.statistics import macro_interval, wilson_interval
from common import keras
from tokens.dataset import Windows, read_batches
from tokens.generators import class_index, class_names, level_name, load_generators
from training.devices import predict_on_batch

ROLES = ("train", "val", "test", "unseen")

# ---------------------------------------------------------------- predictions


def batch_outputs(model, windows, batch_size=64, compiled=True):
    """Yield (numbers (b,), outputs {name: (b, ...)}) of windows (N, L, T, D), in order; the numbers are below N.

    All batches have one shape, so that the model is compiled once: the last one is filled up with its last window.
    Without `compiled`, fewer windows than a batch are neither filled up nor compiled for.
    """
    count = len(windows)
    filled = compiled or count >= batch_size
    starts = range(0, count, batch_size)
    ends = [start + batch_size if filled else count for start in starts]
    batches = [np.minimum(np.arange(*pair), count - 1) for pair in zip(starts, ends, strict=True)]
    for start, batch, tokens in zip(starts, batches, read_batches(windows, batches), strict=True):
        outputs = predict_on_batch(model, tokens) if filled else model(np.asarray(tokens, "float32"))
        real = min(batch_size, count - start)
        yield batch[:real], {name: keras.ops.convert_to_numpy(values)[:real] for name, values in outputs.items()}


def predict(model, windows: Windows, batch_size=64):
    """Embedding (V, D) and class probabilities (V, C) of each video in float32: the mean over its windows. Raises
    InputError where they are not finite: a step of training was too large.
    """
    videos = int(windows.video[-1]) + 1
    embedding = np.zeros((videos, model.config["dim"]), "float32")
    probabilities = np.zeros((videos, model.config["num_classes"]), "float32")
    weight = 1 / np.bincount(windows.video)[:, None]
    for numbers, outputs in batch_outputs(model, windows, batch_size):
        video = windows.video[numbers]
        np.add.at(embedding, video, outputs["embedding"] * weight[video])
        np.add.at(probabilities, video, softmax(np.float64(outputs["logits"]), axis=1) * weight[video])
    if not (np.isfinite(embedding).all() and np.isfinite(probabilities).all()):
        raise InputError("the model's predictions are not finite; lower --learning-rate")
    return embedding, probabilities


def class_means_head(model, rows, batch_size):
    """Give the classifier the weights of the linear discriminant of class means, with shrunken covariances and equal
    priors, in the embedding of training videos (V rows with labels). Its logits are scaled to vary as those of the
    classifier did that training left, which stays where there are no more videos than classes.
    """
    kernel, bias = model.classifier.get_weights()  # (D, C), (C,)
    classes = len(bias)
    if len(rows) <= classes:
        print(f"{len(rows)} videos are too few for class means of {classes} classes; the head stays as trained")
        return
    embedding, labels = np.float64(predict(model, Windows(rows), batch_size)[0]), [row.label for row in rows]
    means = LinearDiscriminantAnalysis("lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes))
    means.fit(embedding, labels)
    weights = [means.coef_.T, means.intercept_]
    if classes == 2:  # scikit-learn has the difference of the two alone
        weights = [np.pad(own, [(0, 0)] * (own.ndim - 1) + [(1, 0)]) for own in weights]
    spread = [centred_deviation(embedding @ own + more) for own, more in ((kernel, bias), weights)]
    model.classifier.set_weights([own * spread[0] / spread[1] for own in weights])


def centred_deviation(logits):
    """The standard deviation of logits (V, C) around each video's mean, which softmax does not see."""
    return (logits - logits.mean(axis=1, keepdims=True)).std()


def validation(model, windows, rows, batch_size) -> dict[str, float]:
    """{"val_accuracy", "val_macro_accuracy", "val_cross_entropy" in nats} over V videos: predictions are means over
    their `windows` (Windows of `rows`), labels those of the rows (V,).
    """
    labels = np.array([row.label for row in rows])
    probabilities = predict(model, windows, batch_size)[1]
    scores = score(labels, probabilities, model.config["class_names"])
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "val_accuracy": scores["accuracy"],
        "val_macro_accuracy": scores["macro_accuracy"],
        "val_cross_entropy": -float(np.mean(np.log(np.maximum(likelihood, 1e-12)))),
    }


def score(labels, probabilities, classes) -> dict:
    """The metrics of a set of videos from labels (V,) and probabilities (V, C). Macro: over the classes present."""
    labels, predicted = np.asarray(labels, int), np.argmax(probabilities, axis=1)
    confusion = confusion_matrix(labels, predicted, labels=range(len(classes)))
    videos, correct = confusion.sum(axis=1), confusion.diagonal()
    recall = {name: correct[i] / videos[i] if videos[i] else None for i, name in enumerate(classes)}
    metrics = {
        "classes": list(classes),
        "videos": len(labels),
        "accuracy": correct.sum() / len(labels),
        "accuracy_interval": wilson_interval(correct.sum(), len(labels)),
        "macro_accuracy": np.mean([value for value in recall.values() if value is not None]),
        "macro_interval": macro_interval(correct[videos > 0], videos[videos > 0]),
        "majority": videos.max() / len(labels),
        "uniform": 1 / len(classes),
        "per_class": {name: {"videos": int(videos[i]), "accuracy": recall[name]} for i, name in enumerate(classes)},
        "confusion": confusion.tolist(),
    }
    if tuple(classes) == ("Real", "Fake"):
        predicted_fake = confusion[:, 1].sum()
        metrics |= {"precision": correct[1] / predicted_fake if predicted_fake else None, "recall": recall["Fake"]}
        metrics["auc"] = roc_auc_score(labels, probabilities[:, 1]) if videos.all() else None
    return json.loads(json.dumps(metrics, default=float))


def score_names(labels, predicted) -> dict:
    """Accuracies of test videos by the names (V,) of their true and predicted classes; folds may be pooled.

    per_class is {name: [videos, correct]}; chance is `majority` for micro and `uniform` for macro.
    """
    labels, correct = np.asarray(labels), np.asarray(labels) == np.asarray(predicted)
    per_class = {name: [int((labels == name).sum()), int(correct[labels == name].sum())] for name in np.unique(labels)}
    return {
        "videos": len(labels),
        "classes": len(per_class),
        "micro": float(correct.mean()),
        "macro": float(np.mean([hits / videos for videos, hits in per_class.values()])),
        "majority": max(videos for videos, _ in per_class.values()) / len(labels),
        "uniform": 1 / len(per_class),
        "per_class": {str(name): counts for name, counts in per_class.items()},
    }


def evaluate(model, videos, level, batch_size) -> tuple[dict, dict]:
    """The metrics on test, and arrays over the videos of all roles: embedding (V, D), probabilities (V, C), video,
    generator, group, class (V,) and split (V,): train, val, test or unseen. `videos` is what choose_videos returns.
    """
    rows = [row._replace(split=role) for role in ROLES for row in getattr(videos, role)]
    embedding, probabilities = predict(model, Windows(rows), batch_size)
    arrays = {
        "embedding": embedding,
        "probabilities": probabilities,
        "video": np.array([row.path for row in rows]),
        "generator": np.array([row.generator for row in rows]),
        "group": np.array([row.group for row in rows]),
        "class": np.array([videos.classes[row.label] if row.label is not None else "unseen" for row in rows]),
        "split": np.array([row.split for row in rows]),
    }
    test, unseen = arrays["split"] == "test", arrays["split"] == "unseen"
    metrics = {"level": level} | score([row.label for row in videos.test], probabilities[test], videos.classes)
    predicted = np.array(videos.classes)[probabilities[unseen].argmax(axis=1)]
    metrics |= {"excluded": videos.excluded, "unseen": unseen_report(arrays["generator"][unseen], predicted)}
    metrics["clips"] = {role: [row.path for row in getattr(videos, role)] for role in ROLES}
    return metrics | {"simulated": bool(model.config["features"].get("simulated"))}, arrays


def sum_to_level(probabilities, classes, level):
    """GEN-L's probabilities (V, C) summed along the generator table: those of a level's classes (V, K), and the names.

    The probability of generators that are Unknown or Mixed at the level is left out, so a row may sum to less than 1.
    """
    return sum_members(probabilities, at_level(np.array(classes), level).tolist())


def sum_members(probabilities, members):
    """Probabilities (..., C) summed over equal names in members (C,): (..., K), and the K names. Members that are empty
    or None are left out.
    """
    names = [name for name in dict.fromkeys(members) if name]
    return probabilities @ np.array([[member == name for name in names] for member in members], float), names


def at_level(generators, level):
    """The class names (V,) of generators (V,) at a level; empty where Unknown or Mixed there, or outside the table."""
    table, names = load_generators(), (*class_names(level), "")
    numbers = {name: class_index(level, name, table) for name in set(generators.tolist())}
    return np.array([names[-1 if numbers[name] is None else numbers[name]] for name in generators.tolist()])


def unseen_report(generators, predicted):
    """Predictions for generators not trained on: {generator: {videos, predicted: {class: videos}}}."""
    report = {}
    for (generator, name), count in Counter(zip(generators.tolist(), predicted.tolist(), strict=True)).items():
        entry = report.setdefault(generator, {"videos": 0, "predicted": {}})
        entry["videos"] += count
        entry["predicted"][name] = count
    return report


# ---------------------------------------------------------------- what is printed


def title(metrics, what="", videos="test videos"):
    """The title of a table or figure: the level, how many videos, and whether they are simulated."""
    simulated = ", simulated" * metrics["simulated"]
    return f"{level_name(metrics['level'])}, {metrics['videos']} {videos}{simulated}{what}"


def print_results(metrics):
    """The accuracy of each class, micro and macro beside chance, and what was left out."""
    rows = list(metrics["per_class"].items())
    for what, key in (("micro", "accuracy"), ("macro", "macro_accuracy")):
        rows.append((f"Overall ({what})", {"videos": metrics["videos"], "accuracy": metrics[key]}))
    width = max(len(name) for name, _ in rows)
    print(f"\n{title(metrics, ', per cent')}\n{'class':{width}}  videos accuracy")
    for name, entry in rows:
        print(f"{name:{width}}  {entry['videos']:6} {percent(entry['accuracy']):>8}")
    for name, key in (("micro", "accuracy_interval"), ("macro", "macro_interval")):
        low, high = metrics[key]
        print(f"95% interval of {name}: {percent(low)} to {percent(high)}")
    print(f"chance: micro {percent(metrics['majority'])} (largest class), macro {percent(metrics['uniform'])}")
    if "precision" in metrics:
        print(f"Fake: precision {percent(metrics['precision'])}, recall {percent(metrics['recall'])}")
    for generator, videos in metrics["excluded"].items():
        print(f"left out, Unknown or Mixed at this level: {generator}, {videos} videos")
    for generator, entry in metrics["unseen"].items():
        predicted = ", ".join(f"{name} {count}" for name, count in Counter(entry["predicted"]).most_common(3))
        print(f"unseen: {generator}, {entry['videos']} videos, predicted {predicted}")


def percent(value):
    return f"{100 * value:6.2f}" if value is not None else "     -"
