"""Stage 1 (Sec. 3, S-2): pretrain SAGA's video transformer to tell real from fake, with cross-entropy.

reads   features/<set>/: tokens (S, L, T, D) per video, index-*.csv, recipe.json (01_extract_features.py)
writes  runs/<run>/bin.keras        the epoch best on val, the start of stage 2; bin_last.keras the last one
        runs/<run>/bin.json         metrics on the test split, the clips by role (train, val, test, unseen), the recipe
        runs/<run>/bin_embeddings.npz  embedding (V, D), probabilities (V, 2), video, generator, group, class, split
                                    (V,), and the recipe
        runs/<run>/bin_history.csv, logs/bin (TensorBoard), bin_confusion.png, bin_roc.png, bin_tsne_*.png

    python 02_pretrain_binary.py --batch-size 32 --epochs 5 --learning-rate 3e-4 --decay-steps 0

The defaults are the paper's, made for 1.6 million videos: its rate of 1e-5 hardly moves on a small set. The line above
is what `make demo` passes for the simulated zoo: a minute on two cores, accuracy 0.91 (majority 0.75). Interrupted,
the same command goes on from the last finished epoch and ends with the same result.
"""

import argparse
import time
from pathlib import Path

from basics.artifacts import file_digest, finished_metrics, make_recipe
from basics.running import count_or_all, fold, fraction, names, not_negative, positive, run_script
from common import SAGA, adamw, build_saga, keras
from tokens.dataset import features_recipe, index_digest, read_index
from tokens.generators import TABLE, load_generators
from tokens.split import choose_videos
from training.callbacks import checkpoint_file, fit, save_run
from training.devices import fuse_attention, is_main_process, use_devices
from training.evaluation import evaluate, print_results
from training.plots import draw_figures
from training.remat import RematSAGA
from training.service import service_address

PATHS = ("features", "run", "generators", "test_features")
MACHINE = ("tpu", "data_service", "overwrite")


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # what is read and written
    add("--features", default="features/zoo", help="folder written by 01_extract_features.py")
    add("--run", default="runs/zoo", help="folder for models, metrics and figures")
    add("--generators", default=str(TABLE), help="the generator table")
    add("--overwrite", action="store_true", help="train anew although the run folder holds other results")
    # who trains and who is tested
    add("--train-generators", type=names, help="A,B,...: train on these and Real only, not on all of the table")
    add("--test-generators", type=names, help="A,B,...: test on these and Real, not on those trained on")
    add("--test-features", help="test on every video of this features folder, not on the test split")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others; no val")
    add("--labels-per-class", type=count_or_all, default="all", help="videos per class to train on, or all")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--best", choices=("val", "last"), default="val", help="keep the epoch best on val, or train on val as well")
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


def main(argv=None):
    args = get_args(argv)
    started = time.time()
    use_devices(args.tpu)

    # ---------------------------------------------------------------- load
    rows, features = read_index(args.features), features_recipe(args.features)
    made_from = {"level": "bin", "features": features, "index_sha256": index_digest(rows)}
    made_from |= {"table_sha256": file_digest(args.generators)}
    if args.test_features:
        made_from["test_index_sha256"] = index_digest(read_index(args.test_features))
    recipe = make_recipe(vars(args), PATHS, MACHINE, ("keras",), **made_from)
    unfinished = [checkpoint_file(args.run, "bin")]
    if (done := finished_metrics(Path(args.run) / "bin.json", recipe, args.overwrite, unfinished)) is not None:
        return done
    videos = choose_videos(
        rows,
        "bin",
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
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = adamw(args.learning_rate, args.decay_steps, args.weight_decay)
    model.compile(optimizer, {"logits": cross_entropy}, metrics={"logits": ["accuracy"]})

    # ---------------------------------------------------------------- train
    fit(
        model,
        videos,
        "bin",
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
    metrics, arrays = evaluate(model, videos, "bin", args.batch_size)
    print_results(metrics)

    # ---------------------------------------------------------------- save
    if is_main_process():
        save_run(model, metrics, arrays, args.run, recipe, time.time() - started)
        draw_figures(metrics, arrays, args.run)
    return metrics


if __name__ == "__main__":
    run_script(main)
