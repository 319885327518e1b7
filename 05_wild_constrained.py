"""Unknown-aware attribution (arXiv 2601.00218): is this image by one target generator? A linear classifier on frozen
features, trained on few labelled sources and fine-tuned on unlabelled wild images under a constraint.

    L0        the baseline's loss: mean binary cross-entropy (BCE) over the labelled images
    min       mean BCE over the wild images, all taken for non-target (+ l2 / 2 |w|^2, as the baseline's)
    so that   mean BCE over the labelled images <= tau L0                                          (tau = 2)

In      features/<set>/ by 01: a vector per image, of stills or of frames of clips; or runs/<run>/<level>_embeddings.npz
Out     runs/<run>/wild.json            AP, ROC AUC of each generator before and after; the constraint by round; recipe
        runs/<run>/wild_classifier.npz  baseline and constrained (D + 1,), mean and scale (D,), recipe
        runs/<run>/wild_scores.png, wild_curves.png; with --apply FEATURES wild_applied.csv: path, generator, score

    python 05_wild_constrained.py --features features/zoo --target HotShot --known Real,SVD,Lavie
    python 05_wild_constrained.py --apply features/new

One logit, whose sigmoid is the probability of non-target (the paper's orientation). In metrics the target is the
positive class and the score is the logit's negative. Expect seconds.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from common import HERE, git_commit, not_negative, positive, run_script
from tokens.dataset import replace_whole, write_json
from tokens.ranking import METHODS, draw_curves, draw_scores, measure, print_report
from tokens.wild import deal, linear, load_classifier, prepare, read_images, refuse_other_features, resolve_roles, score
from training.callbacks import finished_metrics, fold, names, versions

KNOWN, UNSEEN = "Real,SVD,Lavie", "Gen2,Pika,Sora"
WILD = "ZeroScope,I2VGen-XL,VideoCrafter,DynamiCrafter,SD,SEINE,Latte,OpenSora,ModelScope,MorphStudio,MoonValley,Show_1"
L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # tried on val
TOLERANCE = 1e-3  # of tau L0, by which a feasible labelled loss may lie above it


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--features", default="features/zoo", help="folder written by 01, or <level>_embeddings.npz by 02 or 03")
    add("--run", default="runs/wild", help="folder for classifier, metrics and figures")
    add("--generators", default=str(HERE / "generators.csv"), help="the generator table, for aliases")
    add("--target", default="HotShot", help="the generator to attribute")
    add("--known", type=names, default=KNOWN, help="A,B,...: labelled as non-target")
    add("--wild", type=names, default=WILD, help="A,B,...: unlabelled, taken for non-target; may include the target")
    add("--unseen", type=names, default=UNSEEN, help="A,B,...: tested only")
    add("--target-count", type=positive, default=200, help="labelled images of the target, at most")
    add("--known-count", type=positive, default=67, help="labelled images of each known generator, at most")
    add("--wild-count", type=positive, default=67, help="wild images of each wild generator, at most")
    add("--images-per-clip", type=positive, default=4, help="frames of a clip that are images, evenly spread")
    add("--tau", type=at_least_one, default=2.0, help="the labelled loss may be this many times the baseline's")
    add("--l2", type=l2_or_auto, default="auto", help="weight of |w|^2 / 2 in every loss; auto: the best on val")
    add("--early-stopping", action="store_true", help="baseline without penalty, stopped where val is best")
    add("--batch-size", type=positive, default=16384, help="wild images read at a time, which bounds the memory")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others")
    add("--limit", type=positive, help="at most this many clips per generator and split: a small run")
    add("--seed", type=int, default=0, help="seed of the choice of images")
    add("--apply", metavar="FEATURES", help="score these features by the classifier in --run, and do nothing else")
    add("--overwrite", action="store_true", help="train anew although the run folder holds other results")
    return parser.parse_args(argv)


def at_least_one(text):
    if not (number := not_negative(text)) >= 1:
        raise ValueError(text)  # the baseline itself must be feasible
    return number


def l2_or_auto(text):
    return "auto" if text == "auto" else not_negative(text)


# ---------------------------------------------------------------- losses


def mean_bce(theta, batches, head=linear):
    """Mean binary cross-entropy in nats, and its gradient, over batches of (vectors (n, D), non-target (n,), 0 or 1).

    A mean over images on each side, so that a wild set of any size weighs as much as the labelled one.
    """
    loss, gradient, count = 0.0, 0.0, 0
    for vectors, non_target in batches:
        logits, backward = head(theta, vectors)
        loss += np.sum(np.logaddexp(0, logits) - non_target * logits, dtype=float)
        gradient = gradient + np.float64(backward(expit(logits) - non_target.astype(logits.dtype)))
        count += len(vectors)
    return loss / count, gradient / count


def add_l2(theta, loss, gradient, l2):
    """The penalty l2 / 2 |w|^2, which leaves the last entry, the bias, alone."""
    weights = np.append(theta[:-1], 0)
    return loss + l2 / 2 * weights @ weights, gradient + l2 * weights


def descend(objective, start, iterations=1000):
    """The minimum of objective(theta) -> (value, gradient) by L-BFGS, which needs no rate: all is convex and smooth."""
    limits = {"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-9, "gtol": 1e-5}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=limits).x


# ---------------------------------------------------------------- the method


def fit_baseline(labelled, l2, start, head=linear):
    """theta of the least mean BCE over the labelled images (vectors, non-target), with the penalty."""
    return descend(lambda theta: add_l2(theta, *mean_bce(theta, [labelled], head), l2), start)


def choose_l2(labelled, val, start, head=linear):
    """The penalty in L2 whose baseline has the least mean BCE over val."""
    losses = [mean_bce(fit_baseline(labelled, l2, start, head), [val], head)[0] for l2 in L2]
    return L2[int(np.argmin(losses))]


def stop_early(labelled, val, start, head=linear, patience=200, steps=20000):
    """theta of gradient descent without penalty, at the step of the least mean BCE over val, and that step.

    `patience` steps without a better one end it. The rate is 1 / (the loss's largest curvature), of a linear head.
    """
    rate = 4 * len(labelled[0]) / (np.linalg.norm(labelled[0], 2) ** 2 + len(labelled[0]))
    theta, best, least, at = start, start, np.inf, 0
    for step in range(steps + 1):
        if (loss := mean_bce(theta, [val], head)[0]) < least:
            best, least, at = theta, loss, step
        if step - at >= patience:
            break
        theta = theta - rate * mean_bce(theta, [labelled], head)[1]
    return best, at


def fine_tune(baseline, labelled, wild, l2, tau, head=linear, rounds=40):
    """Minimise the mean BCE of `wild` (batches) so that that of `labelled` is at most tau times the baseline's.

    An augmented Lagrangian (Nocedal & Wright 2006, Alg. 17.4): each round minimises, from where the last one ended,
    wild + (max(0, m + b c)^2 - m^2) / 2b, where c = labelled - tau L0 over all labelled images, m is the multiplier
    and b the weight, and then sets m to max(0, m + b c). b grows fourfold where a round has not brought c down to a
    quarter. Returns the best theta whose c is within TOLERANCE, the baseline's at worst, and a row per round.
    """
    allowed = tau * mean_bce(baseline, [labelled], head)[0]
    theta, multiplier, weight, violation, history = baseline, 0.0, 1 / allowed, np.inf, []
    best, least = baseline, add_l2(baseline, *mean_bce(baseline, wild, head), l2)[0]

    def lagrangian(theta):
        value, gradient = add_l2(theta, *mean_bce(theta, wild, head), l2)
        loss, slope = mean_bce(theta, [labelled], head)
        push = max(0.0, multiplier + weight * (loss - allowed))
        return value + (push**2 - multiplier**2) / (2 * weight), gradient + push * slope

    for number in range(1, rounds + 1):
        theta = descend(lagrangian, theta)
        wild_loss, labelled_loss = mean_bce(theta, wild, head)[0], mean_bce(theta, [labelled], head)[0]
        excess, value = labelled_loss - allowed, add_l2(theta, wild_loss, 0.0, l2)[0]
        if excess <= TOLERANCE * allowed and value < least:
            best, least = theta, value
        slack = max(excess, -multiplier / weight)  # 0 where c = 0, or m = 0 and c < 0
        multiplier = max(0.0, multiplier + weight * excess)
        history.append({"round": number, "wild_loss": wild_loss, "labelled_loss": labelled_loss, "constraint": excess})
        history[-1] |= {"multiplier": multiplier, "weight": weight}
        if abs(slack) <= TOLERANCE * allowed:
            break
        weight *= 4 if abs(slack) > violation / 4 else 1
        violation = abs(slack)
    return best, history


# ---------------------------------------------------------------- training


def train(problem, tau, l2="auto", early=False, head=linear, start=None):
    """Baseline and constrained classifier, {"baseline", "constrained": theta}, and the facts of their training."""
    start = np.zeros(len(problem.mean) + 1) if start is None else start
    labelled, val, wild, facts = problem.labelled, problem.val, problem.wild, {}
    if (l2 == "auto" or early) and len(set(val[1])) < 2:
        raise ValueError("val has no image of the target, or none of the known ones; give --l2 a number, such as 0.01")
    if early:
        l2, (baseline, facts["steps"]) = 0.0, stop_early(labelled, val, start, head)
    else:
        l2 = choose_l2(labelled, val, start, head) if l2 == "auto" else l2
        baseline = fit_baseline(labelled, l2, start, head)
    constrained, rounds = fine_tune(baseline, labelled, wild, l2, tau, head)
    thetas = {"baseline": baseline, "constrained": constrained}
    for name, theta in thetas.items():
        losses = {"labelled_loss": mean_bce(theta, [labelled], head)[0], "wild_loss": mean_bce(theta, wild, head)[0]}
        facts[name] = losses
    return thetas, facts | {"l2": l2, "allowed": tau * facts["baseline"]["labelled_loss"], "rounds": rounds}


# ---------------------------------------------------------------- applying


def apply(args):
    """Write wild_applied.csv: path, generator and scores of every image of other features of the same kind."""
    classifier, recipe = load_classifier(Path(args.run) / "wild_classifier.npz")
    images = read_images(args.apply, recipe["arguments"]["images_per_clip"])
    refuse_other_features(args.apply, images.recipe, recipe)
    path = Path(args.run) / "wild_applied.csv"

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "generator", *METHODS])
            for start in range(0, len(images.path), args.batch_size):
                part = images.rows(slice(start, start + args.batch_size))
                scores = [score(classifier, name, part.vectors) for name in METHODS]
                writer.writerows(zip(part.path, part.generator, *(np.round(own, 6) for own in scores), strict=True))

    replace_whole(path, write)
    target = recipe["arguments"]["target"]
    print(f"{len(images.path)} images scored in {path}; above 0: likelier {target} than not")
    return {"images": len(images.path)}


# ---------------------------------------------------------------- main


def main(argv=None):
    args = get_args(argv)
    if args.apply:
        return apply(args)
    started, run = time.time(), Path(args.run)

    # ---------------------------------------------------------------- load
    images = read_images(args.features, args.images_per_clip, args.fold, args.limit, args.seed)
    others = {"known": args.known, "wild": args.wild, "unseen": args.unseen}
    generators = resolve_roles(images, args.target, others, args.generators)
    recipe = {"arguments": vars(args), "git": git_commit(), "versions": versions()} | images.recipe
    if (done := finished_metrics("wild", args, recipe)) is not None:
        return done
    counts = {role: getattr(args, f"{role}_count") for role in ("target", "known", "wild")}
    roles, (target,) = deal(images, generators, counts, args.seed), generators["target"]

    # ---------------------------------------------------------------- train
    problem = prepare(images, roles, target, args.batch_size)
    thetas, facts = train(problem, args.tau, args.l2, args.early_stopping)
    classifier = thetas | {"mean": problem.mean, "scale": problem.scale}

    # ---------------------------------------------------------------- evaluate
    scores, metrics = measure(images, roles, generators, classifier)
    metrics = {"target": target, "roles": generators, "training": facts} | metrics
    print_report(metrics)

    # ---------------------------------------------------------------- save
    draw_scores(scores, metrics, run / "wild_scores.png")
    draw_curves(scores, metrics, run / "wild_curves.png")
    arrays = classifier | {"recipe": json.dumps(recipe)}
    replace_whole(run / "wild_classifier.npz", lambda file: np.savez(file, **arrays), suffix=".npz")
    metrics["recipe"] = recipe | {"seconds": round(time.time() - started, 1)}
    write_json(run / "wild.json", metrics)
    print(f"classifier, metrics and figures are in {run}")
    return metrics


if __name__ == "__main__":
    run_script(main)
