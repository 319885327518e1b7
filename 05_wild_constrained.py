"""Unknown-aware attribution (arXiv 2601.00218): is this image by one target generator? A linear classifier on frozen
features, trained on few labelled sources and fine-tuned on unlabelled wild images under a constraint.

    L0        the baseline's loss: mean binary cross-entropy (BCE) over the labelled images
    min       mean BCE over the wild images, all taken as non-target (+ l2 / 2 |w|^2, as the baseline's)
    so that   mean BCE over the labelled images <= tau L0                                          (tau = 2)

In      features/<set>/ by 01: a vector per image, of stills or of frames of clips; or runs/<run>/<level>_embeddings.npz
Out     runs/<run>/wild.json            AP, ROC AUC of each generator before and after; the constraint by round; recipe
        runs/<run>/wild_classifier.npz  baseline and constrained (D + 1,), mean and scale (D,), recipe
        runs/<run>/wild_scores.npz      of M images path, generator, role (labelled, val, wild, test), split, group, and
                                        scores baseline and constrained (M,); and, in the same order, standardised
                                        labelled_vectors, val_vectors, wild_vectors, test_vectors (n, D)
        runs/<run>/wild_scores.png, wild_curves.png; with --apply FEATURES wild_applied.csv: path, generator, score

    python 05_wild_constrained.py --features features/zoo --target HotShot --known Real,SVD,Lavie
    python 05_wild_constrained.py --apply features/new

One logit, whose sigmoid is the probability of non-target (the paper's orientation). In metrics the target is the
positive class and the score is the logit's negative. It takes ten seconds and no Keras: the problem is convex, so SciPy
finds its optimum without learning rates, epochs or random batches.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import expit

from basics.artifacts import file_digest, finished_metrics, make_recipe, write_arrays, write_atomically, write_json
from basics.code import code_of, print_other_code
from basics.running import (
    InputError,
    at_least_one,
    fold,
    names,
    names_with_counts,
    not_negative,
    positive,
    run_script,
    seed,
)
from basics.statistics import RANKING, at_threshold, minimize_constrained, minimize_lbfgs, ranking_table, stop_early
from tokens.generators import TABLE
from tokens.images import assign_roles, read_images, resolve_roles, score_images, standardize

WILD = "ZeroScope,I2VGen-XL,VideoCrafter,DynamiCrafter,SD,SEINE,Latte,OpenSora,ModelScope,MorphStudio,MoonValley,Show_1"
L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried on val
METHODS = ("baseline", "constrained")


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # what is read and written
    add("--features", default="features/zoo", help="folder of 01, or <level>_embeddings.npz of 02 or 03")
    add("--run", default="runs/wild", help="folder for classifier, metrics and figures")
    add("--generators", default=str(TABLE), help="the generator table, for aliases")
    add("--apply", metavar="FEATURES", help="score these features by the classifier in --run, and do nothing else")
    add("--overwrite", action="store_true", help="train again, replacing other results in the run folder")
    # which images have which role
    add("--target", default="HotShot", help="the generator to attribute")
    add("--known", type=names, default=["Real", "SVD", "Lavie"], help="A,B,...: labelled as non-target")
    unlabelled = f"A,B=5,...: unlabelled, taken as non-target, may include the target; of B 5 images (default: {WILD})"
    add("--wild", type=names_with_counts, default=argparse.SUPPRESS, help=unlabelled)
    add("--unseen", type=names, default=["Gen2", "Pika", "Sora"], help="A,B,...: tested only")
    add("--target-count", type=positive, default=200, help="labelled images of the target, at most")
    add("--known-count", type=positive, default=67, help="labelled images of each known generator, at most")
    add("--wild-count", type=positive, default=67, help="wild images of each wild generator, at most")
    add("--images-per-clip", type=positive, default=4, help="frames of a clip that are images, evenly spread")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--seed", type=seed, default=0, help="seed of the choice of images")
    # training
    add("--tau", type=at_least_one, default=2.0, help="the labelled loss may be this many times the baseline's")
    add("--l2", type=not_negative, help="weight of |w|^2 / 2 in every loss; without it the best on val")
    add("--early-stopping", action="store_true", help="baseline without penalty, stopped where val is best")
    add("--wild-batch", type=positive, default=16384, help="wild images read at a time, which bounds the memory")
    return parser.parse_args(argv, argparse.Namespace(wild=dict.fromkeys(WILD.split(","))))


# ---------------------------------------------------------------- scores


def print_ranking(metrics):
    """Print the losses, a row of AP and AUC per generator and per mean, and the rates at the threshold."""

    def print_row(what, *entries):
        text = "{:.2f} ({:.2f}-{:.2f})".format
        ap, auc = (" -> ".join(text(each[key], *each[f"{key}_interval"]) for each in entries) for key in RANKING)
        print(f"{what:42}  {ap:34} {auc}")

    training = metrics["training"]
    before, after, last = training["baseline"], training["constrained"], training["rounds"][-1]
    print(f"labelled loss {before['labelled_loss']:.4f} -> {after['labelled_loss']:.4f}", end="")
    print(f" (allowed {training['allowed']:.4f}), wild loss {before['wild_loss']:.4f}", end="")
    print(f" -> {after['wild_loss']:.4f};", end="")
    print(f" l2 {training['l2']:g}, multiplier {last['multiplier']:.3g} after {last['round']} rounds")
    print(f"\nagainst the target, {' -> '.join(METHODS)}, 95% over groups; chance: AP the prevalence, AUC 0.5")
    print(f"{'role':7} {'generator':16} {'images':>6} {'prevalence':>10}  {'AP':34} AUC")
    for role, means in metrics["means"].items():
        for name, entry in metrics["by_generator"].items():
            if name in metrics["roles"][role]:
                what = f"{role:7} {name:16} {entry['images']:6} {entry['prevalence']:10.2f}"
                print_row(what, *(entry[method] for method in METHODS))
        print_row(f"{role:7} mean", *(means[method] for method in METHODS))
        print_row(f"{'':7} mean gain", means["gain"])
    for method, row in metrics["at_threshold"].items():
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in row["false_alarms"].items())
        recall = f"recall {row['recall']:.2f}, balanced accuracy {row['balanced_accuracy']:.2f}"
        print(f"{method}: {recall}; predicted as the target of others: {rates}")


def draw_results(scores, roles, what, run):
    """Of {method: {generator: scores (N,)}} histograms by role, and curves of the target against unseen generators."""
    from matplotlib.figure import Figure  # here, since --help need not wait for Matplotlib
    from sklearn.metrics import precision_recall_curve, roc_curve

    (target,) = roles["target"]
    histograms, curves = (Figure(size, layout="constrained") for size in ((7, 6), (12, 5)))
    bins = np.histogram_bin_edges(np.concatenate([part for own in scores.values() for part in own.values()]), 24)
    for axis, (method, by_generator) in zip(histograms.subplots(len(scores), sharex=True), scores.items(), strict=True):
        for role, color in (("target", "lightsteelblue"), ("known", "C1"), ("unseen", "C2")):
            if drawn := [by_generator[name] for name in roles[role] if name in by_generator]:
                part = np.concatenate(drawn)
                weights, label = np.full(len(part), 1 / len(part)), f"{role}, {len(part)} images"
                style = "stepfilled" if role == "target" else "step"
                axis.hist(part, bins, weights=weights, histtype=style, lw=1.8, color=color, label=label)
        axis.axvline(0, color="k", ls=":", label="threshold")
        axis.set(title=method, ylabel="fraction of the images", xlabel=f"score of {target} (logit)")
    axis.legend()
    roc, precision_recall = curves.subplots(1, 2)
    for color, name in enumerate(roles["unseen"]):
        for (method, by_generator), style in zip(scores.items(), (":", "-"), strict=True):
            pair, line = (by_generator[target], by_generator[name]), {"color": f"C{color}", "ls": style}
            labels, values = np.repeat([1, 0], list(map(len, pair))), np.concatenate(pair)
            roc.plot(*roc_curve(labels, values)[:2], **line, label=f"{name}, {method}")
            precision, recall, _ = precision_recall_curve(labels, values)
            precision_recall.step(recall, precision, **line, where="post")
    roc.plot([0, 1], [0, 1], "k", lw=0.5, label="chance")
    roc.set(title="ROC", xlabel="false positive rate", ylabel=f"recall of {target}", aspect="equal")
    precision_recall.set(title="precision and recall", xlabel=f"recall of {target}", ylabel="precision", ylim=(0, 1.02))
    curves.legend(loc="outside right center", fontsize=8)
    for name, figure in (("wild_scores.png", histograms), ("wild_curves.png", curves)):
        figure.suptitle(what)
        write_atomically(run / name, partial(figure.savefig, dpi=120), ".png")


# ---------------------------------------------------------------- the method


def logits_of(theta, vectors):
    """Logits of non-target (n,) for vectors (n, D) by theta (D + 1,): weights and, last, the bias."""
    weights = theta.astype(vectors.dtype)
    return vectors @ weights[:-1] + weights[-1]


def mean_bce(theta, batches, l2=0.0):
    """Mean binary cross-entropy in nats over batches of (vectors, non-target), plus l2 / 2 |w|^2 of all but the bias;
    and its gradient (D + 1,). As a mean over images, wild ones weigh as much as labelled ones however many they are.
    """
    loss, gradient, count = 0.0, 0.0, 0
    for vectors, non_target in batches:
        logits = logits_of(theta, vectors)
        residual = expit(logits) - non_target.astype(logits.dtype)  # the slope of an image's loss along its logit
        loss += np.sum(np.logaddexp(0, logits) - non_target * logits, dtype=float)
        gradient = gradient + np.float64(np.append(residual @ vectors, residual.sum()))
        count += len(vectors)
    weights = np.append(theta[:-1], 0)
    return loss / count + l2 / 2 * weights @ weights, gradient / count + l2 * weights


def fit_baseline(labelled, l2, start):
    """theta of the least mean BCE over the labelled images, with the penalty."""
    return minimize_lbfgs(lambda theta: mean_bce(theta, labelled, l2), start)


def choose_l2(labelled, val, start):
    """The penalty in L2 whose baseline has the least mean BCE over val."""
    return min(L2, key=lambda l2: mean_bce(fit_baseline(labelled, l2, start), val)[0])


def fit_early(labelled, val, start):
    """theta of gradient descent without penalty, where val's loss is least, and that step."""
    ((vectors, _),) = labelled
    rate = 4 * len(vectors) / (np.linalg.norm(vectors, 2) ** 2 + len(vectors))  # 1 / the loss's largest curvature
    return stop_early(lambda theta: mean_bce(theta, labelled), lambda theta: mean_bce(theta, val)[0], start, rate)


def fine_tune(baseline, allowed, labelled, wild, l2):
    """theta of the least mean BCE over the wild images, all taken as non-target, whose mean BCE over the labelled
    images is at most `allowed`, tau L0; and a row per round of the solver.
    """

    def objective(theta):
        return mean_bce(theta, wild, l2)

    def constraint(theta):  # at most 0
        loss, gradient = mean_bce(theta, labelled)
        return loss - allowed, gradient

    return minimize_constrained(objective, constraint, baseline, unit=allowed)


def main(argv=None):
    args = get_args(argv)
    started, run = time.time(), Path(args.run)
    if args.apply:
        return {"images": score_images(args.apply, run, args.wild_batch)}

    # ---------------------------------------------------------------- load: vectors and roles
    images = read_images(args.features, args.images_per_clip, args.fold, args.limit, args.seed)
    made_from = images.recipe | {"table_sha256": file_digest(args.generators), "code": code_of(main)}
    recipe = make_recipe(vars(args), ("features", "run", "generators"), ("overwrite", "apply"), ("scipy",), **made_from)
    if (done := finished_metrics(run / "wild.json", recipe, args.overwrite)) is not None:
        return done
    print_other_code(args.features, images.recipe["features"])
    named = {"target": [args.target], "known": args.known, "wild": list(args.wild), "unseen": args.unseen}
    named = resolve_roles(images, named, args.generators)
    counts = {"target": [args.target_count], "known": [args.known_count] * len(named["known"])}
    counts["wild"] = [count or args.wild_count for count in args.wild.values()]
    roles, (target,) = assign_roles(images, named, counts, args.seed), named["target"]
    places = roles._asdict() | {"test": np.concatenate(list(roles.test.values()))}
    vectors, mean, scale = standardize(images.vectors, places, args.wild_batch)
    other = np.float64(images.generator != target)
    labelled, val = ([(vectors[role], other[places[role]])] for role in ("labelled", "val"))
    parts = np.split(vectors["wild"], range(args.wild_batch, len(roles.wild), args.wild_batch))
    wild = [(part, np.ones(len(part))) for part in parts]  # all taken as non-target

    # ---------------------------------------------------------------- train: the baseline and its loss, L0
    start, l2, training = np.zeros(len(mean) + 1), args.l2, {}
    if (l2 is None or args.early_stopping) and len(set(val[0][1])) < 2:
        raise InputError("val has no image of the target, or none of the known ones; give --l2 a number, such as 0.01")
    if args.early_stopping:
        l2, (baseline, training["steps"]) = 0.0, fit_early(labelled, val, start)
    else:
        l2 = choose_l2(labelled, val, start) if l2 is None else l2
        baseline = fit_baseline(labelled, l2, start)
    L0, _ = mean_bce(baseline, labelled)  # noqa: N806  (the paper's name)

    # ---------------------------------------------------------------- train: least wild loss, labelled loss <= tau L0
    constrained, rounds = fine_tune(baseline, args.tau * L0, labelled, wild, l2)

    # ---------------------------------------------------------------- evaluate: scores
    classifier = {"baseline": baseline, "constrained": constrained, "mean": mean, "scale": scale}
    for method in METHODS:
        losses = (mean_bce(classifier[method], batches)[0] for batches in (labelled, wild))
        training[method] = dict(zip(("labelled_loss", "wild_loss"), losses, strict=True))
    training |= {"l2": l2, "allowed": args.tau * L0, "rounds": rounds}
    chosen = np.concatenate(list(places.values()))
    rows = {key: getattr(images, key)[chosen] for key in ("path", "generator", "split", "group")}
    rows["role"] = np.repeat(list(places), [len(numbers) for numbers in places.values()])
    for method in METHODS:
        rows[method] = np.concatenate([-logits_of(classifier[method], vectors[role]) for role in places])
    tested = {name: (rows["role"] == "test") & (rows["generator"] == name) for name in roles.test}
    scores = {method: {name: rows[method][mask] for name, mask in tested.items()} for method in METHODS}
    groups = {name: rows["group"][mask] for name, mask in tested.items()}
    metrics = {"target": target, "roles": named, "training": training} | ranking_table(scores, groups, named)
    metrics["test_images"] = {name: len(values) for name, values in groups.items()}
    metrics["at_threshold"] = {method: at_threshold(values, target) for method, values in scores.items()}
    metrics["simulated"] = bool(images.recipe["features"].get("simulated"))
    print_ranking(metrics)

    # ---------------------------------------------------------------- save
    what = f"{target} against others, {len(places['test'])} test images{', simulated' * metrics['simulated']}"
    draw_results(scores, named, what, run)
    write_arrays(run / "wild_classifier.npz", classifier | {"recipe": recipe})
    write_arrays(run / "wild_scores.npz", rows | {f"{role}_vectors": values for role, values in vectors.items()})
    metrics["recipe"] = recipe | {"seconds": round(time.time() - started, 1)}
    write_json(run / "wild.json", metrics)
    print(f"classifier, scores, metrics and figures are in {run}")
    return metrics


if __name__ == "__main__":
    run_script(main)
