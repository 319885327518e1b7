"""Stage 1 (Sec. 3, S-2): pretrain SAGA's video transformer to tell real from fake, with cross-entropy.

reads   features/<set>/: tokens (S, L, T, D) per video, index-*.csv, recipe.json (01_extract_features.py)
writes  runs/<run>/bin.keras        the epoch best on val, the start of stage 2; bin_last.keras the last one
        runs/<run>/bin.json         metrics on the test split, the clips by role (train, val, test, unseen), the recipe
        runs/<run>/bin_embeddings.npz  embedding (V, D), probabilities (V, 2), video, generator, group, class, split
                                    (V,), and the recipe
        runs/<run>/bin_history.csv, logs/bin (TensorBoard), bin_confusion.png, bin_roc.png, bin_tsne_*.png

    python 02_pretrain_binary.py --preset small

The defaults are the paper's, made for 1.6 million videos: its rate of 1e-5 hardly moves on a small set. The line above
is what `make demo` passes for the simulated zoo: a minute on two cores, accuracy 0.97 (majority 0.75). Interrupted, the
same command goes on from the last finished epoch and ends with the same result.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from basics.artifacts import file_digest, finished_metrics, make_recipe, write_arrays, write_json
from basics.code import code_of, print_other_code
from basics.running import (
    batch_size,
    count_from_0,
    count_or_all,
    fold,
    fraction,
    names,
    not_negative,
    positive,
    run_script,
    seed,
)
from common import SAGA, WindowBatches, adamw, build_saga, keras
from tokens.dataset import Windows, features_recipe, index_digest, read_index
from tokens.generators import TABLE, load_generators
from tokens.split import choose_videos
from training.callbacks import EpochEnd, Interruption, checkpoint_file, parts, print_training, save_model, tensorboard
from training.devices import divisible_batch_size, fuse_attention, is_main_process, processes, use_devices
from training.evaluation import class_means_head, evaluate, print_results
from training.plots import draw_figures
from training.presets import PRESETS, print_preset
from training.remat import RematSAGA
from training.service import served, service_address

PATHS = ("features", "run", "generators", "test_features")
MACHINE = ("tpu", "data_service", "overwrite", "preset")


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # what is read and written
    add("--features", default="features/zoo", help="folder written by 01_extract_features.py")
    add("--run", default="runs/zoo", help="folder for models, metrics and figures")
    add("--generators", default=str(TABLE), help="the generator table")
    add("--overwrite", action="store_true", help="train again, replacing other results in the run folder")
    add("--preset", choices=tuple(PRESETS), help="settings for few clips, training/presets.py; given flags win")
    # which videos train and which are tested
    add("--train-generators", type=names, help="A,B,...: train on these and Real only, not on all of the table")
    add("--test-generators", type=names, help="A,B,...: test on these and Real, not on those trained on")
    add("--test-features", help="test on every video of this features folder, not on the test split")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others; no val")
    add("--labels-per-class", type=count_or_all, default="all", help="videos per class, of train and val, or all")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--best", choices=("val", "last"), default="val", help="keep the epoch best on val, or train on val as well")
    # training; defaults are the paper's (Sec. S-2)
    add("--epochs", type=positive, default=10, help="passes over the training windows; val is predicted after each")
    add("--steps", type=positive, help="training steps in all; an epoch is then a part of them, not a pass")
    add("--patience", type=positive, help="stop once val's cross-entropy has not fallen for so many epochs")
    add("--batch-size", type=batch_size, default=64, help="windows per step")
    add("--batching", choices=("natural", "balanced"), default="natural", help="balanced: as many of each class")
    add("--learning-rate", type=not_negative, default=1e-5, help="AdamW's highest rate")
    add("--schedule", choices=("halving", "cosine", "constant"), default="halving", help="how the rate falls")
    add("--decay-steps", type=positive, default=1000, help="halving: steps in which the rate halves, smoothly")
    add("--warmup-steps", type=count_from_0, default=0, help="steps in which the rate first rises, linearly")
    add("--weight-decay", type=not_negative, default=0.004, help="AdamW's weight decay")
    add("--dropout", type=fraction, default=0.1, help="dropout in every block")
    add("--temporal-blocks", type=positive, default=5, help="temporal encoder blocks, 2 or more")
    add("--head", choices=("linear", "means"), default="linear", help="classify as trained, or by class means (LDA)")
    add("--seed", type=seed, default=0, help="seed of weights, dropout, batches and the choice of labels")
    # devices
    add("--dtype", choices=("float32", "mixed_bfloat16"), default="float32", help="what the transformer computes in")
    add("--tpu", action="store_true", help="train on a TPU; several GPUs need no flag")
    add("--remat", action="store_true", help="compute the spatial block again going back, in less memory")
    add("--data-service", type=service_address, help="grpc://HOST:PORT: a tf.data service reads (training/service.py)")
    args = parser.parse_args(argv)
    if args.preset:
        parser.set_defaults(**{key: value for key, value in PRESETS[args.preset].items() if key in args})
        args = parser.parse_args(argv)
    return args


def main(argv=None):
    args = get_args(argv)
    started, run = time.time(), Path(args.run)
    use_devices(args.tpu)

    # ---------------------------------------------------------------- load
    rows, features = read_index(args.features), features_recipe(args.features)
    if not args.preset:
        print_preset("02_pretrain_binary.py", sys.argv[1:] if argv is None else argv, len(rows))
    made_from = {"level": "bin", "features": features, "index_sha256": index_digest(rows)}
    made_from |= {"table_sha256": file_digest(args.generators)}
    if args.test_features:
        made_from["test_index_sha256"] = index_digest(read_index(args.test_features))
        made_from["tested_features"] = features_recipe(args.test_features)
    recipe = make_recipe(vars(args), PATHS, MACHINE, ("keras",), code=code_of(main), **made_from)
    checkpoint = checkpoint_file(run, "bin")
    if (finished := finished_metrics(run / "bin.json", recipe, args.overwrite, [checkpoint])) is not None:
        return finished
    print_other_code(args.features, features)
    split = choose_videos(
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
    count = sum(row.windows for row in split.train)
    batch_size = divisible_batch_size(min(args.batch_size, count))
    epochs, steps = parts(args.steps, args.epochs, count // batch_size)

    # ---------------------------------------------------------------- model
    keras.utils.set_random_seed(args.seed)
    model = build_saga(
        len(split.classes),
        *(features[key] for key in ("frames", "tokens", "dim")),
        temporal_blocks=args.temporal_blocks,
        dropout=args.dropout,
        dtype=args.dtype,
        kind=RematSAGA if args.remat else SAGA,
        class_names=split.classes,
        features=features,
    )
    fuse_attention(model)
    optimizer = adamw(
        args.schedule, args.learning_rate, args.decay_steps, args.warmup_steps, epochs * steps, args.weight_decay
    )
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, {"logits": cross_entropy}, metrics={"logits": ["accuracy"]})

    # ---------------------------------------------------------------- train
    windows = Windows(split.train)
    labels = np.array([row.label for row in split.train])[windows.video]
    with WindowBatches(windows, labels, batch_size, args.seed, args.batching, processes(), steps) as batches:
        epoch_end = EpochEnd("bin", run, recipe, batches, split.val, args.batch_size, args.patience)
        epochs_done = epoch_end.restore(model, epochs)  # by an interrupted run
        print_training(split, batches, args.labels_per_class)
        model.fit(
            served(batches, args.data_service, epochs) if args.data_service else batches,
            epochs=epochs,
            initial_epoch=epochs_done,
            steps_per_epoch=steps,
            shuffle=False,
            callbacks=[Interruption(), keras.callbacks.TerminateOnNaN(), epoch_end, *tensorboard(run / "logs" / "bin")],
            verbose=1 if sys.stdout.isatty() else 2,
        )
    if is_main_process():
        save_model(model, run / "bin_last.keras", recipe)
    if epoch_end.best:
        model.set_weights(epoch_end.best)
    if args.head == "means":
        class_means_head(model, split.train, args.batch_size)

    # ---------------------------------------------------------------- evaluate
    metrics, arrays = evaluate(model, split, "bin", args.batch_size)
    print_results(metrics)

    # ---------------------------------------------------------------- save
    metrics |= {"steps": int(optimizer.iterations.numpy())}
    metrics |= {"recipe": recipe | {"seconds": round(time.time() - started, 1)}}
    if is_main_process():
        save_model(model, run / "bin.keras", recipe)
        write_arrays(run / "bin_embeddings.npz", arrays | {"recipe": recipe})
        draw_figures(metrics, arrays, run)
        write_json(run / "bin.json", metrics)  # last: it marks the run as finished
        checkpoint.unlink(missing_ok=True)
        print(f"model, metrics and figures are in {run}")
    return metrics


if __name__ == "__main__":
    run_script(main)
