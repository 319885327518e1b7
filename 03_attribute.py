"""Stage 2 (Sec. 3.2, S-2): adapt the real/fake transformer to one attribution level with few labels,
lambda * cross-entropy + (1 - lambda) * hard negative mining.

reads   features/<set>/ (01_extract_features.py) and runs/<run>/bin.keras (02_pretrain_binary.py)
writes  runs/<run>/<level>.keras    the epoch best on val; <level>_last.keras the last one
        runs/<run>/<level>.json     metrics on the test split, the clips by role (train, val, test, unseen), the recipe
        runs/<run>/<level>_embeddings.npz  embedding (V, D), probabilities (V, C), video, generator, group, class,
                                    split (V,), and the recipe
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

from basics.artifacts import file_digest, finished_metrics, make_recipe
from basics.running import InputError, count_or_all, fold, fraction, names, not_negative, positive, run_script
from common import LEVELS, SAGA, adamw, build_saga, keras, load_saga, mean_over_pairs, ops, triplet_terms
from tokens.dataset import features_recipe, index_digest, read_index
from tokens.generators import TABLE, load_generators
from tokens.split import choose_videos
from training.callbacks import checkpoint_file, fit, save_run
from training.devices import fuse_attention, global_batch, is_main_process, use_devices
from training.evaluation import evaluate, print_results
from training.plots import draw_figures
from training.remat import RematSAGA
from training.service import service_address

PATHS = ("features", "run", "generators", "test_features", "init")
MACHINE = ("tpu", "data_service", "overwrite")


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # what is read and written
    add("--features", default="features/zoo", help="folder written by 01_extract_features.py")
    add("--run", default="runs/zoo", help="folder for models, metrics and figures")
    add("--generators", default=str(TABLE), help="the generator table")
    add("--overwrite", action="store_true", help="train anew although the run folder holds other results")
    # who trains and who is tested
    add("--level", choices=LEVELS[1:], default="gen", help="attribution level")
    add("--init", help="stage 1's bin.keras, or scratch for one-stage training; default: RUN/bin.keras")
    add("--train-generators", type=names, help="A,B,...: train on these and Real only, not on all of the table")
    add("--test-generators", type=names, help="A,B,...: test on these and Real, not on those trained on")
    add("--test-features", help="test on every video of this features folder, not on the test split")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others; no val")
    add("--labels-per-class", type=count_or_all, default=500, help="videos per class to train on, or all")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--best", choices=("val", "last"), default="val", help="keep the epoch best on val, or train on val as well")
    # loss (Sec. 3.2)
    add("--loss", choices=("ce", "semi", "hnm"), default="hnm", help="cross-entropy alone, or with mined triplets")
    add("--ce-weight", type=unit, default=0.5, help="lambda: the weight of cross-entropy beside mining")
    add("--margin", type=float, default=1.0, help="alpha of Eq. (2); -1 is Eq. (4), (5) as printed")
    add("--positives", choices=("all", "hardest", "random"), default="all", help="positives per anchor")
    add("--normalize", action=argparse.BooleanOptionalAction, default=False, help="mine on L2-normalised embeddings")
    # training; defaults are the paper's (Sec. S-2)
    add("--epochs", type=positive, default=10, help="passes over the training windows")
    add("--batch-size", type=positive, default=64, help="windows per step")
    add("--batching", choices=("natural", "pk"), default="natural", help="shuffled, or dealt equally to the classes")
    add("--learning-rate", type=not_negative, default=1e-5, help="AdamW's initial rate")
    add("--decay-steps", type=not_negative, default=1000, help="steps in which the rate halves, smoothly; 0: constant")
    add("--weight-decay", type=not_negative, default=0.004, help="AdamW's weight decay")
    add("--dropout", type=fraction, default=0.1, help="dropout in every block")
    add("--temporal-blocks", type=positive, default=5, help="temporal encoder blocks, 2 or more")
    add("--seed", type=int, default=0, help="seed of weights, dropout, batches and the choice of labels")
    # devices
    add("--dtype", choices=("float32", "mixed_bfloat16"), default="float32", help="what the transformer computes in")
    add("--tpu", action="store_true", help="train on a TPU; several GPUs need no flag")
    add("--remat", action="store_true", help="compute the spatial block again going back, in less memory")
    add("--data-service", type=service_address, help="grpc://HOST:PORT: a tf.data service reads (training/service.py)")
    return parser.parse_args(argv)


def unit(text):
    if not 0 <= (number := float(text)) <= 1:
        raise ValueError(text)
    return number


def stage_two_loss(loss, ce_weight, margin, positives, normalize):
    """The losses by model output, their weights, and what is logged: lambda CE + (1 - lambda) mining (Sec. 3.2)."""

    def terms(labels, embedding):
        labels, embedding = global_batch(labels, embedding)
        embedding = ops.normalize(embedding, axis=-1) if normalize else embedding
        return triplet_terms(labels, embedding, margin, loss == "semi", positives)

    def mining(labels, embedding):
        mean = mean_over_pairs(*terms(labels, embedding))
        return ops.reshape(mean, (1,))  # Keras divides no scalar by the number of TensorFlow's replicas

    def mined_pairs(labels, embedding):
        values, pairs = terms(labels, embedding)
        return ops.sum(ops.cast(values > 0, "float32") * pairs)

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if loss == "ce":
        return {"logits": cross_entropy}, {"logits": 1.0}, {"logits": ["accuracy"]}
    weights = {"logits": ce_weight, "embedding": 1 - ce_weight}
    logged = {"logits": ["accuracy"], "embedding": [mined_pairs]}
    return {"logits": cross_entropy, "embedding": mining}, weights, logged


def start_from(model, path):
    """Copy stage 1's transformer into the model; the classifier keeps its fresh weights."""
    stage_one = load_saga(path, "02_pretrain_binary.py")
    if (blocks := stage_one.config["temporal_blocks"]) != model.config["temporal_blocks"]:
        raise InputError(f"{path} has {blocks} temporal blocks; pass --temporal-blocks {blocks} or --init scratch")
    for key in ("frames", "tokens", "dim", "heads"):
        if stage_one.config[key] != model.config[key]:
            raise InputError(
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
        raise InputError(f"{args.init}: no stage-1 model; run 02 first or pass --init scratch")
    rows, features = read_index(args.features), features_recipe(args.features)
    made_from = {"level": args.level, "features": features, "index_sha256": index_digest(rows)}
    made_from |= {"table_sha256": file_digest(args.generators)}
    if args.test_features:
        made_from["test_index_sha256"] = index_digest(read_index(args.test_features))
    made_from["init_sha256"] = None if args.init == "scratch" else file_digest(args.init)
    recipe = make_recipe(vars(args), PATHS, MACHINE, ("keras",), **made_from)
    metrics_file, unfinished = Path(args.run) / f"{args.level}.json", [checkpoint_file(args.run, args.level)]
    if (done := finished_metrics(metrics_file, recipe, args.overwrite, unfinished)) is not None:
        return done
    videos = choose_videos(
        rows,
        args.level,
        args.features,
        load_generators(args.generators),
        train_generators=args.train_generators,
        test_generators=args.test_generators,
        test_features=args.test_features,
        fold=args.fold,
        labels_per_class=args.labels_per_class,
        limit=args.limit,
        train_on_val=args.best == "last",
        seed=args.seed,
    )

    # ---------------------------------------------------------------- model
    keras.utils.set_random_seed(args.seed)
    model = build_saga(
        len(videos.classes),
        *(features[key] for key in ("frames", "tokens", "dim")),
        temporal_blocks=args.temporal_blocks,
        dropout=args.dropout,
        dtype=args.dtype,
        kind=RematSAGA if args.remat else SAGA,
        class_names=videos.classes,
        features=features,
    )
    fuse_attention(model)
    if args.init != "scratch":
        start_from(model, args.init)
    losses, weights, logged = stage_two_loss(args.loss, args.ce_weight, args.margin, args.positives, args.normalize)
    optimizer = adamw(args.learning_rate, args.decay_steps, args.weight_decay)
    model.compile(optimizer, losses, loss_weights=weights, metrics=logged)

    # ---------------------------------------------------------------- train
    fit(
        model,
        videos,
        args.level,
        args.run,
        recipe,
        epochs=args.epochs,
        batch_size=args.batch_size,
        batching=args.batching,
        labels_per_class=args.labels_per_class,
        seed=args.seed,
        service=args.data_service,
    )

    # ---------------------------------------------------------------- evaluate
    metrics, arrays = evaluate(model, videos, args.level, args.batch_size)
    print_results(metrics)

    # ---------------------------------------------------------------- save
    if is_main_process():
        save_run(model, metrics, arrays, args.run, recipe, time.time() - started)
        draw_figures(metrics, arrays, args.run)
    return metrics


if __name__ == "__main__":
    run_script(main)
