"""Stage 2 (Sec. 3.2, S-2): adapt the real/fake transformer to one attribution level with few labels,
lambda * cross-entropy + (1 - lambda) * hard negative mining.

reads   features/<set>/ (01_extract_features.py) and runs/<run>/bin.keras (02_pretrain_binary.py)
writes  runs/<run>/<level>.keras    the epoch best on val; <level>_last.keras the last one
        runs/<run>/<level>.json     metrics on the test split, with the recipe
        runs/<run>/<level>_embeddings.npz  embedding (V, D), probabilities (V, C), video, generator, class, split (V,)
        runs/<run>/<level>_history.csv, logs/<level> (TensorBoard), <level>_confusion.png, <level>_tsne_*.png

    python 03_attribute.py --level gen --batch-size 32 --epochs 11 --learning-rate 3e-4 --decay-steps 0 \\
        --normalize --margin 0.2 --ce-weight 0.8

The defaults are the paper's (500 labels per class, margin 1, lambda 0.5, rate 1e-5). The line above, with
`--labels-per-class 100`, is what `make demo` passes for the simulated zoo: two minutes on two cores, accuracy 0.62
micro and 0.58 macro (chance 0.25 and 0.05).
"""

import argparse
import time
from pathlib import Path

from common import keras, mean_over_pairs, ops, run_script, triplet_terms
from tokens.dataset import read_index
from tokens.split import choose_videos
from training.callbacks import (
    add_training_arguments,
    at_once,
    file_digest,
    finished_metrics,
    fit,
    load_saga,
    make_optimizer,
    make_recipe,
    new_model,
    save_run,
)
from training.devices import global_batch, use_devices, writes
from training.evaluation import draw_figures, evaluate, print_results


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_training_arguments(parser, labels_per_class=500)
    add = parser.add_argument
    add("--level", choices=("task", "sd", "team", "gen"), default="gen", help="attribution level")
    add("--init", help="stage 1's bin.keras, or scratch for one-stage training; default: RUN/bin.keras")
    add("--loss", choices=("ce", "semi", "hnm"), default="hnm", help="cross-entropy alone, or with mined triplets")
    add("--ce-weight", type=unit, default=0.5, help="lambda: the weight of cross-entropy beside mining")
    add("--margin", type=float, default=1.0, help="alpha of Eq. (2); -1 is Eq. (4), (5) as printed")
    add("--positives", choices=("all", "hardest", "random"), default="all", help="positives per anchor")
    add("--normalize", action=argparse.BooleanOptionalAction, default=False, help="mine on L2-normalised embeddings")
    return parser.parse_args(argv)


def unit(text):
    if not 0 <= (number := float(text)) <= 1:
        raise ValueError(text)
    return number


def stage_two_loss(args):
    """The losses by model output, their weights, and what is logged: lambda CE + (1 - lambda) mining (Sec. 3.2)."""

    def terms(labels, embedding):
        labels, embedding = global_batch(labels, embedding)
        embedding = ops.normalize(embedding, axis=-1) if args.normalize else embedding
        return triplet_terms(labels, embedding, args.margin, args.loss == "semi", args.positives)

    def mining(labels, embedding):
        mean = mean_over_pairs(*terms(labels, embedding))
        return ops.reshape(mean, (1,))  # Keras divides no scalar by the number of TensorFlow's replicas

    def mined_pairs(labels, embedding):
        values, pairs = terms(labels, embedding)
        return ops.sum(ops.cast(values > 0, "float32") * pairs)

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if args.loss == "ce":
        return {"logits": cross_entropy}, {"logits": 1.0}, {"logits": ["accuracy"]}
    weights = {"logits": args.ce_weight, "embedding": 1 - args.ce_weight}
    logged = {"logits": ["accuracy"], "embedding": [mined_pairs]}
    return {"logits": cross_entropy, "embedding": mining}, weights, logged


def start_from(model, path):
    """Copy stage 1's transformer into the model; the classifier keeps its fresh weights."""
    stage_one = load_saga(path, "02_pretrain_binary.py")
    if (blocks := stage_one.config["temporal_blocks"]) != model.config["temporal_blocks"]:
        raise ValueError(f"{path} has {blocks} temporal blocks; pass --temporal-blocks {blocks} or --init scratch")
    for key in ("frames", "tokens", "dim", "heads"):
        if stage_one.config[key] != model.config[key]:
            raise ValueError(
                f"{path} was trained on other features ({key} {stage_one.config[key]}, here {model.config[key]});"
                " run 02 on these features or pass --init scratch"
            )
    for fresh, trained in zip(model.layers, stage_one.layers, strict=True):
        if fresh.name != "classifier":
            fresh.set_weights(trained.get_weights())


def main(argv=None):
    args = get_args(argv)
    args.init = args.init or str(Path(args.run) / "bin.keras")
    started = time.time()
    use_devices(args.tpu)

    # ---------------------------------------------------------------- load
    if args.init != "scratch" and not Path(args.init).is_file():
        raise ValueError(f"{args.init}: no stage-1 model; run 02 first or pass --init scratch")
    rows = read_index(args.features)
    recipe = make_recipe(args.level, args, rows, init_sha256=None if args.init == "scratch" else file_digest(args.init))
    if done := finished_metrics(args.level, args, recipe):
        return done
    videos = choose_videos(rows, args.level, args)

    # ---------------------------------------------------------------- model
    model = new_model(args, videos.classes)
    if args.init != "scratch":
        start_from(model, args.init)
    losses, weights, logged = stage_two_loss(args)
    model.compile(make_optimizer(args), losses, loss_weights=weights, metrics=logged)

    # ---------------------------------------------------------------- train
    fit(model, videos, args.level, args, recipe)

    # ---------------------------------------------------------------- evaluate
    metrics, arrays = evaluate(model, videos, args.level, at_once(args))
    print_results(metrics)

    # ---------------------------------------------------------------- save
    if writes():
        save_run(model, metrics, arrays, args, recipe, started)
        draw_figures(metrics, arrays, args.run)
    return metrics


if __name__ == "__main__":
    run_script(main)
