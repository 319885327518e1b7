"""Unknown-aware attribution (arXiv 2601.00218): is this image by one target generator? A linear classifier on frozen
features, trained on few labelled sources and fine-tuned on unlabelled wild images under a constraint.

    L0        the baseline's loss: mean binary cross-entropy (BCE) over the labelled images
    min       mean BCE over the wild images, all taken for non-target (+ l2 / 2 |w|^2, as the baseline's)
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
positive class and the score is the logit's negative. Expect ten seconds. It needs no Keras: the problem is convex, of
D + 1 weights on vectors that are already there, and SciPy solves it to the end without rates, epochs or random batches.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.special import expit

from basics.artifacts import (
    file_digest,
    finished_metrics,
    make_recipe,
    read_arrays,
    write_arrays,
    write_csv,
    write_json,
)
from basics.optimize import add_l2, minimize_constrained, minimize_lbfgs, stop_early
from basics.running import (
    InputError,
    at_least_one,
    fold,
    names,
    names_with_counts,
    number_or_auto,
    positive,
    run_script,
)
from basics.statistics import at_threshold, ranking_lines, ranking_table, threshold_lines
from tokens.generators import TABLE, load_generators
from tokens.images import on_disk, read_images, refuse_other_vectors
from tokens.split import assign_roles, resolve_roles

KNOWN, UNSEEN = "Real,SVD,Lavie", "Gen2,Pika,Sora"
WILD = "ZeroScope,I2VGen-XL,VideoCrafter,DynamiCrafter,SD,SEINE,Latte,OpenSora,ModelScope,MorphStudio,MoonValley,Show_1"
L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried on val
METHODS = ("baseline", "constrained")


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # what is read and written
    add("--features", default="features/zoo", help="folder written by 01, or <level>_embeddings.npz by 02 or 03")
    add("--run", default="runs/wild", help="folder for classifier, metrics and figures")
    add("--generators", default=str(TABLE), help="the generator table, for aliases")
    add("--apply", metavar="FEATURES", help="score these features by the classifier in --run, and do nothing else")
    add("--overwrite", action="store_true", help="train anew although the run folder holds other results")
    # which images have which role
    add("--target", default="HotShot", help="the generator to attribute")
    add("--known", type=names, default=KNOWN, help="A,B,...: labelled as non-target")
    add(
        "--wild",
        type=names_with_counts,
        default=WILD,
        help="A,B=5,...: unlabelled, taken for non-target; may include the target; of B 5 images, not --wild-count",
    )
    add("--unseen", type=names, default=UNSEEN, help="A,B,...: tested only")
    add("--target-count", type=positive, default=200, help="labelled images of the target, at most")
    add("--known-count", type=positive, default=67, help="labelled images of each known generator, at most")
    add("--wild-count", type=positive, default=67, help="wild images of each wild generator, at most")
    add("--images-per-clip", type=positive, default=4, help="frames of a clip that are images, evenly spread")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--seed", type=int, default=0, help="seed of the choice of images")
    # training
    add("--tau", type=at_least_one, default=2.0, help="the labelled loss may be this many times the baseline's")
    add("--l2", type=number_or_auto, default="auto", help="weight of |w|^2 / 2 in every loss; auto: the best on val")
    add("--early-stopping", action="store_true", help="baseline without penalty, stopped where val is best")
    add("--batch-size", type=positive, default=16384, help="wild images read at a time, which bounds the memory")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- vectors


def standardize(vectors, places, batch_size):
    """Vectors (n, D) by role, less the labelled ones' mean and over their scale; and that mean and scale (D,).

    `places` of the vectors (N, D), by role. What does not vary among the labelled keeps its scale. Wild vectors may be
    many: they are float32 and on disk, `batch_size` of them at a time in memory.
    """
    labelled = np.float64(vectors[places["labelled"]])
    mean, deviation = labelled.mean(axis=0), labelled.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, 1.0)
    found = {role: (np.float64(vectors[own]) - mean) / scale for role, own in places.items() if role != "wild"}
    parts = np.split(places["wild"], range(batch_size, len(places["wild"]), batch_size))
    wild = on_disk(((vectors[part] - np.float32(mean)) / np.float32(scale) for part in parts), len(mean))
    return found | {"wild": wild}, mean, scale


# ---------------------------------------------------------------- the method


def logits_of(theta, vectors):
    """Logits of non-target (n,) of vectors (n, D) by theta (D + 1,): weights and, last, the bias."""
    weights = theta.astype(vectors.dtype)
    return vectors @ weights[:-1] + weights[-1]


def mean_bce(theta, batches):
    """Mean binary cross-entropy in nats, and its gradient (D + 1,), over batches of vectors and non-target, 0 or 1.

    A mean over images on each side, so that a wild set of any size weighs as much as the labelled one.
    """
    loss, gradient, count = 0.0, 0.0, 0
    for vectors, non_target in batches:
        logits = logits_of(theta, vectors)
        residual = expit(logits) - non_target.astype(logits.dtype)  # the slope of an image's loss along its logit
        loss += np.sum(np.logaddexp(0, logits) - non_target * logits, dtype=float)
        gradient = gradient + np.float64(np.append(residual @ vectors, residual.sum()))
        count += len(vectors)
    return loss / count, gradient / count


def fit_baseline(labelled, l2, start):
    """theta of the least mean BCE over the labelled images, with the penalty."""
    return minimize_lbfgs(lambda theta: add_l2(theta, *mean_bce(theta, labelled), l2), start)


def choose_l2(labelled, val, start):
    """The penalty in L2 whose baseline has the least mean BCE over val."""
    return min(L2, key=lambda l2: mean_bce(fit_baseline(labelled, l2, start), val)[0])


def fit_early(labelled, val, start):
    """theta of gradient descent without penalty, where val's loss is least, and that step."""
    ((vectors, _),) = labelled
    rate = 4 * len(vectors) / (np.linalg.norm(vectors, 2) ** 2 + len(vectors))  # 1 / the loss's largest curvature
    return stop_early(lambda theta: mean_bce(theta, labelled), lambda theta: mean_bce(theta, val)[0], start, rate)


def fine_tune(baseline, labelled, wild, l2, tau):
    """theta of the least mean BCE over the wild images whose mean BCE over the labelled is at most tau times the
    baseline's, L0; and a row per round of the solver.
    """
    allowed = tau * mean_bce(baseline, labelled)[0]  # tau L0

    def objective(theta):  # all wild images are taken for non-target
        return add_l2(theta, *mean_bce(theta, wild), l2)

    def constraint(theta):  # at most 0
        loss, gradient = mean_bce(theta, labelled)
        return loss - allowed, gradient

    theta, rounds = minimize_constrained(objective, constraint, baseline, unit=allowed)
    for number, row in enumerate(rounds, 1):
        reached = row.pop("theta")
        losses = {"wild_loss": mean_bce(reached, wild)[0], "labelled_loss": mean_bce(reached, labelled)[0]}
        rounds[number - 1] = {"round": number} | losses | row
    return theta, rounds


def apply(args):
    """Write wild_applied.csv: path, generator and scores of every image of other features of the same kind."""
    run, keys = Path(args.run), ("baseline", "constrained", "mean", "scale", "recipe")
    classifier = read_arrays(run / "wild_classifier.npz", keys, "train it first, without --apply (--overwrite: anew)")
    ours = classifier["recipe"]
    images = read_images(args.apply, ours["arguments"]["images_per_clip"])
    refuse_other_vectors(args.apply, images.recipe, ours)
    columns = {"path": images.path, "generator": images.generator, "baseline": [], "constrained": []}
    for start in range(0, len(images.path), args.batch_size):
        part = np.float64(images.vectors[start : start + args.batch_size])
        for method in METHODS:
            scores = -logits_of(classifier[method], (part - classifier["mean"]) / classifier["scale"])
            columns[method] += np.round(scores, 6).tolist()
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    write_csv(run / "wild_applied.csv", columns, rows)
    target = ours["arguments"]["target"]
    print(f"{len(images.path)} images scored in {run / 'wild_applied.csv'}; above 0: likelier {target} than not")
    return {"images": len(images.path)}


def main(argv=None):
    args = get_args(argv)
    if args.apply:
        return apply(args)
    started, run = time.time(), Path(args.run)

    # ---------------------------------------------------------------- load: vectors and roles
    images = read_images(args.features, args.images_per_clip, args.fold, args.limit, args.seed)
    named = {"target": [args.target], "known": args.known, "wild": list(args.wild), "unseen": args.unseen}
    named = resolve_roles(images, named, load_generators(args.generators))
    made_from = images.recipe | {"table_sha256": file_digest(args.generators)}
    recipe = make_recipe(vars(args), ("features", "run", "generators"), ("overwrite", "apply"), ("scipy",), **made_from)
    if (done := finished_metrics(run / "wild.json", recipe, args.overwrite)) is not None:
        return done
    counts = {"target": [args.target_count], "known": [args.known_count] * len(named["known"])}
    counts["wild"] = [count or args.wild_count for count in args.wild.values()]
    roles, (target,) = assign_roles(images, named, counts, args.seed), named["target"]

    # ---------------------------------------------------------------- train: L0, objective and constraint
    places = roles._asdict() | {"test": np.concatenate(list(roles.test.values()))}
    vectors, mean, scale = standardize(images.vectors, places, args.batch_size)
    is_other = np.float64(images.generator != target)
    labelled, val = ([(vectors[role], is_other[places[role]])] for role in ("labelled", "val"))
    parts = np.split(vectors["wild"], range(args.batch_size, len(roles.wild), args.batch_size))
    wild = [(part, np.ones(len(part))) for part in parts]
    start, l2, training = np.zeros(len(mean) + 1), args.l2, {}
    if (l2 == "auto" or args.early_stopping) and len(set(val[0][1])) < 2:
        raise InputError("val has no image of the target, or none of the known ones; give --l2 a number, such as 0.01")
    if args.early_stopping:
        l2, (baseline, training["steps"]) = 0.0, fit_early(labelled, val, start)
    else:
        l2 = choose_l2(labelled, val, start) if l2 == "auto" else l2
        baseline = fit_baseline(labelled, l2, start)
    constrained, rounds = fine_tune(baseline, labelled, wild, l2, args.tau)
    classifier = {"baseline": baseline, "constrained": constrained, "mean": mean, "scale": scale}
    sides = {"labelled_loss": labelled, "wild_loss": wild}
    losses = {method: {key: mean_bce(classifier[method], own)[0] for key, own in sides.items()} for method in METHODS}
    allowed = args.tau * losses["baseline"]["labelled_loss"]
    training |= losses | {"l2": l2, "allowed": allowed, "rounds": rounds}

    # ---------------------------------------------------------------- evaluate: scores
    chosen = np.concatenate(list(places.values()))
    rows = {key: getattr(images, key)[chosen] for key in ("path", "generator", "split", "group")}
    rows["role"] = np.repeat(list(places), [len(own) for own in places.values()])
    for method in METHODS:
        rows[method] = np.concatenate([-logits_of(classifier[method], vectors[role]) for role in places])
    tested = {name: (rows["role"] == "test") & (rows["generator"] == name) for name in roles.test}
    scores = {method: {name: rows[method][own] for name, own in tested.items()} for method in METHODS}
    groups = {name: rows["group"][own] for name, own in tested.items()}
    metrics = {"target": target, "roles": named, "training": training}
    metrics |= {"test_images": {name: len(own) for name, own in groups.items()}}
    metrics |= ranking_table(scores, groups, named)
    metrics |= {"at_threshold": {method: at_threshold(own, target) for method, own in scores.items()}}
    metrics |= {"simulated": bool(images.recipe["features"].get("simulated"))}
    before, after, last = losses["baseline"], losses["constrained"], rounds[-1]
    print(
        f"labelled loss {before['labelled_loss']:.4f} (l2 {l2:g}), allowed {allowed:.4f}, reached"
        f" {after['labelled_loss']:.4f}; wild loss {before['wild_loss']:.4f} -> {after['wild_loss']:.4f};"
        f" multiplier {last['multiplier']:.3g} after {last['round']} rounds"
    )
    print("", *ranking_lines(metrics, named, METHODS), *threshold_lines(metrics["at_threshold"]), sep="\n")

    # ---------------------------------------------------------------- save
    from basics.figures import draw_histograms, draw_rankings  # here, since --help need not wait for Matplotlib

    title = f"{target} against others, {len(places['test'])} test images{', simulated' * metrics['simulated']}"
    draw_histograms(scores, named, title, f"score of {target} (logit)", run / "wild_scores.png")
    draw_rankings(scores, target, named["unseen"], title, run / "wild_curves.png")
    write_arrays(run / "wild_classifier.npz", classifier | {"recipe": recipe})
    write_arrays(run / "wild_scores.npz", rows | {f"{role}_vectors": own for role, own in vectors.items()})
    metrics["recipe"] = recipe | {"seconds": round(time.time() - started, 1)}
    write_json(run / "wild.json", metrics)
    print(f"classifier, scores, metrics and figures are in {run}")
    return metrics


if __name__ == "__main__":
    run_script(main)
