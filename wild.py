"""What unknown-aware attribution works on: one vector per image, the roles that images have, and how well a score tells
the target from each other generator.

    images = read_images("features/zoo")                   folder of 01, or <level>_embeddings.npz of 02 or 03
    roles = deal(images, "SVD", {"known": (...), "wild": (...), "unseen": (...)}, counts, seed=0)
    ap, auc = ranking(scores[target], scores[other])

N images, D wide. Functions of arrays, without Keras. Whatever cannot be done raises a ValueError.
"""

import hashlib
import json
import tempfile
import zipfile
from typing import NamedTuple

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve
from tqdm import tqdm

from common import load_generators, resolve_generator
from evaluation import plt, save_figure
from features import assign_splits, features_file, group_hash, map_tokens, read_index
from training import PATHS, features_recipe, first_per, fold_splits, index_digest, usable

# ---------------------------------------------------------------- one vector per image


class Images(NamedTuple):
    """Arrays over the same N images; those of a clip share its path and group."""

    vectors: np.ndarray  # (N, D) float32
    path: np.ndarray  # (N,) of the index
    generator: np.ndarray  # (N,)
    group: np.ndarray  # (N,)
    split: np.ndarray  # (N,) train, val or test
    recipe: dict  # how the vectors were made

    def rows(self, chosen):
        """The same arrays of the images (M,) chosen by place or by mask."""
        return Images(*(own[chosen] for own in self[:-1]), self.recipe)


def read_images(source, per_clip=1, fold=None, limit=None, seed=0) -> Images:
    """The images of a features folder, `per_clip` frames of each clip, evenly spread; or the embeddings of a run of 02
    or 03, one per clip. `fold` (k, n): split test is fold k of n and nobody is val; `limit`: clips per generator and
    split.
    """
    if str(source).endswith(".npz"):
        if fold:
            raise ValueError(f"{source}: the run has its own split; train it by --fold, and leave that out here")
        images = read_embeddings(source)
    else:
        images = read_frames(source, per_clip, fold, limit, seed)
    for start in range(0, len(images.path), 1 << 16):
        wrong = ~np.isfinite(images.vectors[start : start + (1 << 16)]).all(axis=1)
        if wrong.any():
            path = images.path[start + wrong.argmax()]
            raise ValueError(f"{source}: the vector of {path} is not finite; run the stage that wrote it again")
    return images


def read_frames(folder, per_clip, fold, limit, seed):
    """A frame's vector is the mean over its tokens. The vectors are kept in a file without a name, so that millions
    need no more memory than a few.
    """
    recipe, index = features_recipe(folder), read_index(folder)
    rows = usable(index, folder)
    if not rows:
        raise ValueError(f"{folder}: no video with features; run 01 again")
    rows = fold_splits(rows, *fold, seed) if fold else rows
    rows = first_per(rows, ("generator", "split"), limit, seed) if limit else rows
    places = []
    with tempfile.TemporaryFile() as file:
        for place, row in enumerate(tqdm(rows, "reading vectors", unit="clip", disable=len(rows) < 1000)):
            vectors = clip_vectors(row, per_clip)
            if vectors.shape[1] != recipe["dim"]:
                width = f"{vectors.shape[1]} wide, the recipe says {recipe['dim']}"
                raise ValueError(f"{features_file(folder, row['path'])}: {width}; delete it and run 01 again")
            file.write(vectors.tobytes())
            places += [place] * len(vectors)
        file.flush()
        vectors = np.memmap(file, np.float32, "r", shape=(len(places), recipe["dim"]))
    columns = (np.array([row[key] for row in rows])[places] for key in ("path", "generator", "group", "split"))
    made = {key: value for key, value in recipe.items() if key not in ("versions", "git")}
    return Images(vectors, *columns, {"features": made, "index_sha256": index_digest(index)})


def clip_vectors(row, per_clip):
    """Up to `per_clip` frames of a clip, evenly spread over those that are not padding, as float32 (K, D)."""
    file = features_file(row["features"], row["path"])
    tokens = map_tokens(file)
    with np.load(file, allow_pickle=False) as arrays:
        valid = np.argwhere(arrays["valid"])  # (frames, 2): window and frame
    count = min(per_clip, len(valid))
    chosen = valid[((np.arange(count) + 0.5) * len(valid) / count).astype(int)]
    return np.stack([np.mean(tokens[window, frame], axis=0, dtype="float32") for window, frame in chosen])


def read_embeddings(path):
    """The embeddings that a run wrote. Clips of generators it was not trained on are split here, by group as in 01."""
    keys = ("embedding", "video", "generator", "group", "split")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            vectors, video, generator, group, split = (arrays[key] for key in keys)
            recipe = json.loads(str(arrays["recipe"]))
        if len({len(column) for column in (vectors, video, generator, group, split)}) > 1 or vectors.ndim != 2:
            raise ValueError("arrays of different lengths")
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no embeddings of 02 or 03 ({error}); run the stage again") from error
    own = {str(name): str(part) for name, part in zip(group, split, strict=True) if part != "unseen"}
    splits = assign_splits(group.tolist(), generator.tolist(), own)
    trained = sorted(set(generator[np.isin(split, ("train", "val"))].tolist()))
    split = np.array([splits[name] if part == "unseen" else part for name, part in zip(group, split, strict=True)])
    settings = {key: value for key, value in recipe["arguments"].items() if key not in PATHS}
    run = {"level": recipe["level"], "arguments": settings, "trained_on": trained}
    made = {"features": recipe["features"], "index_sha256": recipe["index_sha256"], "run": run}
    return Images(np.float32(vectors), video, generator, group, split, made)


# ---------------------------------------------------------------- roles


class Roles(NamedTuple):
    """Places (M,) among the images. Those that train share no group with those that test."""

    labelled: np.ndarray  # of target and known
    val: np.ndarray  # of target and known
    wild: np.ndarray  # whatever the wild generators are, the target among them or not
    test: dict[str, np.ndarray]  # by generator: target, known, unseen


def resolve_roles(images, target, others):
    """The generators by role as the images name them. Raises ValueError where a name is none or has two roles.

    `others` are {"known": names, "wild": names, "unseen": names}. A wild generator may have another role as well, for
    other images.
    """
    table, there = load_generators(), set(images.generator.tolist())
    named = {"target": [target]} | others
    roles = {role: [resolve_generator(name, table) or name for name in own] for role, own in named.items()}
    for role, own in roles.items():
        if missing := [name for name in own if name not in there]:
            raise ValueError(f"{role}: no image of {', '.join(missing)}; there are: {', '.join(sorted(there))}")
        if not own:
            raise ValueError(f"{role}: no generator named; there are: {', '.join(sorted(there))}")
        if twice := {name for name in own if own.count(name) > 1}:
            raise ValueError(f"{role}: {', '.join(sorted(twice))} named twice")
    taken = [*roles["target"], *roles["known"], *roles["unseen"]]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)}: in two roles of target, known and unseen; leave one out")
    return roles


def deal(images, roles, counts, seed) -> Roles:
    """Deal the images of `roles` (resolve_roles), `counts` of each generator: {"target", "known", "wild": number}.

    Labelled and wild images are of split train; what is left over of a group has no role. Val images are all of split
    val. Target and known are tested on split test, unseen generators on all their images, or on split test where
    others of theirs are wild.
    """
    target, known = roles["target"], roles["known"]
    order = sorted(range(len(images.path)), key=lambda i: group_hash(f"{seed} {images.group[i]}"))
    order = np.array(order)[images.split[order] == "train"]
    used, dealt = set(), {}
    for role in ("target", "known", "wild"):
        dealt[role] = np.concatenate([take(images, order, name, counts[role], used) for name in roles[role]])
    labelled, wild = np.concatenate([dealt["target"], dealt["known"]]), dealt["wild"]
    trained = np.isin(images.group, np.unique(images.group[np.concatenate([labelled, wild])]))
    val = np.flatnonzero((images.split == "val") & np.isin(images.generator, target + known) & ~trained)
    test = {}
    for name in [*target, *known, *roles["unseen"]]:
        own = (images.generator == name) & ~trained
        test[name] = np.flatnonzero(own & (images.split == "test") if name not in roles["unseen"] else own)
        if name in roles["unseen"] and name in roles["wild"]:
            test[name] = np.flatnonzero(own & (images.split == "test"))
    if untested := [name for name in known if not len(test[name])]:
        print(f"no test image, so not evaluated: {', '.join(untested)}")
    found = Roles(np.sort(labelled), val, np.sort(wild), test)
    check_roles(images, found, roles)
    return found._replace(test={name: places for name, places in test.items() if len(places)})


def take(images, order, name, count, used):
    """Up to `count` images of a generator, whole groups in the given order; they are added to `used`."""
    chosen = []
    for place in order[images.generator[order] == name]:
        if len(chosen) == count:
            break
        if place not in used:
            chosen.append(place)
    used.update(np.flatnonzero(np.isin(images.group, images.group[chosen]) & (images.generator == name)))
    return np.array(chosen, int)


def check_roles(images, found, roles):
    """Raise ValueError where a role is empty, or an image is in two roles."""
    (target,), generators = roles["target"], set(images.generator[found.labelled].tolist())
    for name in [target, *roles["known"]]:
        if name not in generators:
            raise ValueError(f"{name}: no image of split train to label; add videos and run 01 again")
    if not len(found.wild):
        raise ValueError(f"wild: no image of {', '.join(roles['wild'])} is left; name other generators")
    for name in [target, *roles["unseen"]]:
        if not len(found.test[name]):
            raise ValueError(f"{name}: no image to test on; add videos and run 01 again, or leave it out")
    parts = {"labelled": found.labelled, "val": found.val, "wild": found.wild}
    parts["test"] = np.concatenate(list(found.test.values()))
    owner = {}
    for role, places in parts.items():
        for place in places:
            digest = hashlib.blake2b(images.vectors[place], digest_size=16).digest()
            other, first = owner.setdefault(digest, (role, place))
            if other != role:
                pair = f"{images.path[first]} ({other}) and {images.path[place]} ({role})"
                raise ValueError(f"{pair} are the same image in two roles; remove one of them")


# ---------------------------------------------------------------- a classifier


def linear(theta, vectors):
    """Logits (n,) of vectors (n, D) by theta (D + 1,), and the way back: residual (n,) -> gradient (D + 1,)."""
    weights = theta.astype(vectors.dtype)
    return vectors @ weights[:-1] + weights[-1], lambda residual: np.append(residual @ vectors, residual.sum())


def standardise(vectors):
    """Mean and standard deviation (D,); what does not vary is left as it is."""
    deviation = vectors.std(axis=0)
    return vectors.mean(axis=0), np.where(deviation > 1e-6, deviation, 1.0)


class WildBatches:
    """Batches of (standardised vectors (n, D), all non-target) that are read one after the other, again each time."""

    def __init__(self, images, places, mean, scale, size):
        self.images, self.places, self.mean, self.scale, self.size = images, places, mean, scale, size

    def __iter__(self):
        for start in range(0, len(self.places), self.size):
            vectors = self.images.vectors[self.places[start : start + self.size]]
            yield (vectors - self.mean) / self.scale, np.ones(len(vectors))


def score(classifier, name, vectors, head=linear):
    """Scores (n,) of vectors (n, D), higher where likelier the target: the negative logit of non-target, in nats."""
    return -head(classifier[name], (np.float64(vectors) - classifier["mean"]) / classifier["scale"])[0]


def load_classifier(path):
    """The arrays of wild_classifier.npz and its recipe. Raises ValueError naming the file when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            classifier = {key: arrays[key] for key in ("baseline", "constrained", "mean", "scale")}
            return classifier, json.loads(str(arrays["recipe"]))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; train it first, without --apply") from error
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); train it anew with --overwrite") from error


def refuse_other_features(source, theirs, ours):
    """Raise ValueError where images of a recipe cannot be scored by a classifier of another."""
    keys = ("encoder", "layer", "weights_sha256", "tokens", "dim", "frames", "fps", "pool")
    differing = [key for key in keys if theirs["features"].get(key) != ours["features"].get(key)]
    differing += ["run"] * (theirs.get("run") != ours.get("run"))
    if differing:
        raise ValueError(f"{source} holds other vectors than the classifier was trained on ({', '.join(differing)})")


# ---------------------------------------------------------------- how well a score tells the target

METRICS, METHODS = ("ap", "auc"), ("baseline", "constrained")


def ranking(target, other, target_weight=None, other_weight=None):
    """Average precision and ROC AUC of scores (N,), (M,) with the target as the positive class, as scikit-learn has
    them, whose checks of its input would take nearly all the time of a bootstrap.
    """
    scores = np.concatenate([target, other])
    target_weight = np.ones(len(target)) if target_weight is None else target_weight
    other_weight = np.ones(len(other)) if other_weight is None else other_weight
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of images with the same score
    hits = np.cumsum(np.append(target_weight, np.zeros(len(other)))[order])[last]
    alarms = np.cumsum(np.append(np.zeros(len(target)), other_weight)[order])[last]
    found = np.diff(hits, prepend=0)
    average_precision = np.sum(found * hits / np.maximum(hits + alarms, 1e-12)) / hits[-1]
    below = alarms[-1] - alarms + np.diff(alarms, prepend=0) / 2
    return np.array([average_precision, np.sum(found * below) / (hits[-1] * alarms[-1])])


def ranking_table(scores, groups, target, repeats=300, seed=0):
    """AP and AUC of the target against each other generator, by method, with 95% intervals.

    scores    {method: {generator: (N,)}}, higher where likelier the target; groups: {generator: (N,)}
    returns   {generator: {"images", "groups", "prevalence", method: {"ap", "auc", "ap_interval", "auc_interval"}}},
              and for several methods "gain": the last one's less the first one's, with its interval
    """
    places = {name: np.unique(own, return_inverse=True)[1] for name, own in groups.items()}
    others, methods = [name for name in groups if name != target], list(scores)
    points = {name: each_ranking(scores, methods, target, name) for name in others}  # (methods, 2)
    random, drawn = np.random.default_rng(seed), {name: [] for name in others}
    for _ in range(repeats):
        weights = {name: draw_groups(place, random) for name, place in places.items()}
        for name in others:
            drawn[name].append(each_ranking(scores, methods, target, name, weights))
    table = {}
    for name in others:
        count, positives = len(groups[name]), len(groups[target])
        table[name] = {"images": count, "groups": int(places[name].max()) + 1}
        table[name] |= {"prevalence": positives / (positives + count)}
        table[name] |= method_entries(points[name], np.array(drawn[name]), methods)
    return table


def each_ranking(scores, methods, target, name, weights=None):
    own = (weights[target], weights[name]) if weights else ()
    return np.array([ranking(scores[method][target], scores[method][name], *own) for method in methods])


def draw_groups(place, random):
    """How often each image is drawn (N,) when whole groups are, with replacement."""
    groups = place.max() + 1
    return np.bincount(random.integers(groups, size=groups), minlength=groups)[place].astype(float)


def method_entries(points, drawn, methods):
    """Points (methods, 2) and bootstrap draws (R, methods, 2) as {method: {"ap", "auc", "ap_interval", ...}}."""
    sides = {method: (points[i], drawn[:, i]) for i, method in enumerate(methods)}
    if len(methods) > 1:
        sides["gain"] = points[-1] - points[0], drawn[:, -1] - drawn[:, 0]
    entries = {}
    for method, (point, own) in sides.items():
        entries[method] = {metric: float(point[i]) for i, metric in enumerate(METRICS)}
        if len(own):
            low, high = np.percentile(own, [2.5, 97.5], axis=0)
            entries[method] |= {f"{metric}_interval": [low[i], high[i]] for i, metric in enumerate(METRICS)}
    return entries


def at_threshold(scores, target, threshold):
    """Where images (N,) of {generator: scores} are called the target above a threshold: the target's recall, each other
    generator's false alarms, and the mean of recall and of the others' share called right. Chance of that is 0.5.

    AP and AUC cannot see a classifier that never calls the target.
    """
    called = {name: float(np.mean(own > threshold)) for name, own in scores.items()}
    recall, false_alarms = called.pop(target), called
    accuracy = (recall + 1 - np.mean(list(false_alarms.values()))) / 2
    return {"recall": recall, "false_alarms": false_alarms, "balanced_accuracy": float(accuracy)}


def measure(images, roles, target, classifier, repeats=300, head=linear):
    """Metrics of baseline and constrained on the test images: AP and AUC by generator, and at the threshold 0."""
    vectors = {name: images.vectors[places] for name, places in roles.test.items()}
    groups = {name: images.group[places] for name, places in roles.test.items()}
    scores = {
        method: {name: score(classifier, method, own, head) for name, own in vectors.items()} for method in METHODS
    }
    table = ranking_table(scores, groups, target, repeats)
    threshold = {method: at_threshold(own, target, 0.0) for method, own in scores.items()}
    facts = {"test_images": {name: len(own) for name, own in vectors.items()}, "by_generator": table}
    return scores, facts | {"at_threshold": threshold, "simulated": bool(images.recipe["features"].get("simulated"))}


def mean_over(metrics, role):
    """{method: {"ap", "auc"}} and "gain", the means over the generators of a role that are tested."""
    rows = [row for name, row in metrics["by_generator"].items() if name in metrics["roles"][role]]
    return {
        method: {metric: float(np.mean([row[method][metric] for row in rows])) for metric in METRICS}
        for method in (*METHODS, "gain")
    }


# ---------------------------------------------------------------- what is printed and drawn


def print_report(metrics):
    training, (last, *_) = metrics["training"], metrics["training"]["rounds"][::-1]
    before, after = (training[method] for method in METHODS)
    print(
        f"labelled loss {before['labelled_loss']:.4f} (l2 {training['l2']:g}), allowed {training['allowed']:.4f},"
        f" reached {after['labelled_loss']:.4f}; wild loss {before['wild_loss']:.4f} -> {after['wild_loss']:.4f};"
        f" multiplier {last['multiplier']:.3g} after {last['round']} rounds"
    )
    print("\nagainst the target, baseline -> constrained, 95% over groups; chance: AP the prevalence, AUC 0.5")
    print(f"{'role':7} {'generator':16} {'images':>6} {'prevalence':>10}  {'AP':34} AUC")
    for role in ("known", "unseen"):
        rows = {name: row for name, row in metrics["by_generator"].items() if name in metrics["roles"][role]}
        for name, row in rows.items():
            cells = ["{} -> {}".format(*(interval_cell(row[method], key) for method in METHODS)) for key in METRICS]
            print(f"{role:7} {name:16} {row['images']:6} {row['prevalence']:10.2f}  {cells[0]:34} {cells[1]}")
        if not rows:
            continue
        means = mean_over(metrics, role)
        cells = [" -> ".join(f"{means[method][key]:.3f}" for method in METHODS) for key in METRICS]
        print(f"{role:7} {'mean':16} {'':17}  {cells[0]:34} {cells[1]}")
    for method, row in metrics["at_threshold"].items():
        alarms = ", ".join(f"{name} {share:.2f}" for name, share in row["false_alarms"].items())
        print(f"{method}: finds {row['recall']:.2f} of the target; called the target: {alarms}")


def interval_cell(entry, metric):
    low, high = entry.get(f"{metric}_interval", (np.nan, np.nan))
    return f"{entry[metric]:.2f} ({low:.2f}-{high:.2f})"


def draw_scores(scores, metrics, path):
    """Histograms of scores by role, baseline above constrained; the line is the threshold."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 6), layout="constrained")
    for axis, method in zip(axes, METHODS, strict=True):
        roles = {role: own for role, own in metrics["roles"].items() if role != "wild"}
        parts = {role: [scores[method][name] for name in own if name in scores[method]] for role, own in roles.items()}
        bins = np.histogram_bin_edges(np.concatenate([*scores[method].values()]), 30)
        for role, own in parts.items():
            axis.hist(np.concatenate(own), bins, density=True, histtype="step", lw=1.8, label=role)
        axis.axvline(0, color="k", ls=":")
        axis.set(title=method, ylabel="density", xlabel=f"score of {metrics['target']} (logit)")
    axes[0].legend()
    figure.suptitle(title_of(metrics))
    save_figure(figure, path)


def draw_curves(scores, metrics, path):
    """ROC and precision against recall of the target against each unseen generator; dotted: baseline."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    target = metrics["target"]
    for number, name in enumerate(metrics["roles"]["unseen"]):
        for method, style in zip(METHODS, (":", "-"), strict=True):
            own = scores[method]
            labels = np.repeat([1, 0], [len(own[target]), len(own[name])])
            values, line = np.concatenate([own[target], own[name]]), {"color": f"C{number}", "ls": style}
            axes[0].plot(*roc_curve(labels, values)[:2], **line)
            precision, recall, _ = precision_recall_curve(labels, values)
            axes[1].plot(recall, precision, **line, label=f"{name}, {method}")
    axes[0].plot([0, 1], [0, 1], "k", lw=0.5)
    axes[0].set(xlabel="share of others called the target", ylabel="share of the target found", title="ROC")
    axes[1].set(xlabel="recall of the target", ylabel="precision", title="precision and recall", ylim=(0, 1.02))
    axes[1].legend(fontsize=8)
    figure.suptitle(title_of(metrics))
    save_figure(figure, path)


def title_of(metrics):
    images = sum(metrics["test_images"].values())
    return f"{metrics['target']} against others, {images} test images{', simulated' * metrics['simulated']}"
