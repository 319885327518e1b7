"""Stage 2 (Sec. 3.2, S-2): adapt the real/fake transformer to one attribution level with few labels,
lambda * cross-entropy + (1 - lambda) * hard negative mining.

reads   features/<set>/ (01_extract_features.py) and runs/<run>/bin.keras (02_pretrain_binary.py)
writes  runs/<run>/<level>.keras    the epoch best on val; <level>_last.keras the last one; and beside them
        <level>.json            metrics on the test split, the clips by role (train, val, test, unseen), the recipe
        <level>_embeddings.npz  embedding (V, D), probabilities (V, C), video, generator, group, class, split (V,)
        <level>_history.csv, logs/<level> (TensorBoard), <level>_confusion.png, <level>_tsne_*.png

    python 03_attribute.py --preset small --level gen

The defaults are the paper's (500 labels per class, margin 1, lambda 0.5, rate 1e-5). With `--labels-per-class all` the
line above is `make demo`'s for the simulated zoo: a minute on two cores, accuracy 0.83 / 0.80 (chance 0.25 / 0.05).
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from basics.artifacts import file_digest, finished_metrics, make_recipe, write_arrays, write_json
from basics.code import code_of, print_other_code
from basics.running import (
    InputError,
    batch_size,
    count_from_0,
    count_or_all,
    finite,
    fold,
    fraction,
    names,
    not_negative,
    positive,
    run_script,
    seed,
    unit,
)
from common import (
    LEVELS,
    SAGA,
    WindowBatches,
    adamw,
    build_saga,
    hard_negative_loss,
    keras,
    load_saga,
    ops,
    saga_config,
    semi_hard_negative_loss,
    triplet_terms,
)
from tokens.dataset import Windows, features_recipe, index_digest, other_tokens, read_index
from tokens.generators import TABLE, load_generators
from tokens.split import choose_videos
from training.callbacks import EpochEnd, Interruption, checkpoint_file, parts, print_training, save_model, tensorboard
from training.devices import divisible_batch_size, fuse_attention, global_batch, is_main_process, processes, use_devices
from training.evaluation import class_means_head, evaluate, print_results
from training.plots import draw_figures
from training.presets import PRESETS, print_preset
from training.remat import RematSAGA
from training.service import served, service_address

PATHS = ("features", "run", "generators", "test_features", "init")
MACHINE = ("tpu", "data_service", "overwrite", "preset")
# Mined losses beside cross-entropy, by their names for --loss: loss(labels (B,), embeddings (B, D), margin, positives)
LOSSES = {"semi": semi_hard_negative_loss, "hnm": hard_negative_loss}


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # what is read and written
    add("--features", default="features/zoo", help="folder written by 01_extract_features.py")
    add("--run", default="runs/zoo", help="folder for models, metrics and figures")
    add("--generators", default=str(TABLE), help="the generator table")
    add("--overwrite", action="store_true", help="train again, replacing other results in the run folder")
    add("--preset", choices=tuple(PRESETS), help="settings for few clips, training/presets.py; given flags win")
    # which videos train and which are tested
    add("--level", choices=LEVELS[1:], default="gen", help="attribution level")
    add("--init", help="stage 1's bin.keras, or scratch for one-stage training; default: RUN/bin.keras")
    add("--train-generators", type=names, help="A,B,...: train on these and Real only, not on all of the table")
    add("--test-generators", type=names, help="A,B,...: test on these and Real, not on those trained on")
    add("--test-features", help="test on every video of this features folder, not on the test split")
    add("--fold", type=fold, help="K/N: test on fold K of N grouped folds, train on the others; no val")
    add("--labels-per-class", type=count_or_all, default=500, help="videos per class, of train and val, or all")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--best", choices=("val", "last"), default="val", help="keep the epoch best on val, or train on val as well")
    # loss (Sec. 3.2)
    add("--loss", choices=("ce", *LOSSES), default="hnm", help="cross-entropy alone, or with mined triplets")
    add("--ce-weight", type=unit, default=0.5, help="lambda: the weight of cross-entropy beside mining")
    add("--margin", type=finite, default=1.0, help="alpha of Eq. (2); -1 is Eq. (4), (5) as printed")
    add("--positives", choices=("all", "hardest", "random"), default="all", help="positives per anchor")
    add("--normalize", action=argparse.BooleanOptionalAction, default=False, help="mine on L2-normalised embeddings")
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
    add("--temporal-blocks", type=positive, help="temporal encoder blocks, 2 or more; default: stage 1's, else 5")
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


def stage_two_loss(loss, ce_weight, margin, positives, normalize):
    """Losses and weights by output of the model, for compile: lambda CE + (1 - lambda) mining (Sec. 3.2).

    CE is of labels (B,) and logits (B, C), mining of labels (B,) and embedding (B, D).
    """

    def mining(labels, embedding):  # (B,), (B, D)
        labels, embedding = global_batch(labels, embedding)
        embedding = ops.normalize(embedding, axis=-1) if normalize else embedding
        mined = LOSSES[loss](labels, embedding, margin, positives)
        return ops.reshape(mined, (1,))  # Keras divides no scalar by the number of TensorFlow's replicas

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if loss == "ce":
        return {"logits": cross_entropy}, {"logits": 1.0}
    return {"logits": cross_entropy, "embedding": mining}, {"logits": ce_weight, "embedding": 1 - ce_weight}


def mined_pairs(labels, embedding, loss, margin, positives, normalize):
    """How many pairs (a, p) of a batch, labels (B,) and embedding (B, D), have a loss above 0 after mining."""
    embedding = ops.normalize(embedding, axis=-1) if normalize else embedding
    terms, pairs = triplet_terms(labels, embedding, margin, loss == "semi", positives)
    return {"mined_pairs": float(ops.sum(ops.cast(terms > 0, "float32") * pairs))}


def start_from(model, path, features):
    """Copy stage 1's transformer into the model; the classifier keeps its fresh weights.

    Raises InputError where stage 1 has other sizes, or was trained on features of another recipe than `features`.
    """
    stage_one = load_saga(path, "bin")
    print_other_code(path, stage_one.config["recipe"])
    if (blocks := stage_one.config["temporal_blocks"]) != model.config["temporal_blocks"]:
        raise InputError(f"{path} has {blocks} temporal blocks; pass --temporal-blocks {blocks} or --init scratch")
    if (heads := stage_one.config["heads"]) != model.config["heads"]:
        raise InputError(f"{path} has {heads} heads, this model {model.config['heads']}; pass --init scratch")
    if differ := other_tokens(stage_one.config["features"], features):
        raise InputError(
            f"{path} was trained on other features ({', '.join(differ)}); run 02 on these features or pass"
            " --init scratch"
        )
    for fresh, trained in zip(model.layers, stage_one.layers, strict=True):
        if fresh.name != "classifier":
            fresh.set_weights(trained.get_weights())


def main(argv=None):
    args = get_args(argv)
    started, run, level = time.time(), Path(args.run), args.level
    args.init = args.init or str(run / "bin.keras")
    use_devices(args.tpu)

    # ---------------------------------------------------------------- load
    if args.init != "scratch" and not Path(args.init).is_file():
        raise InputError(f"{args.init}: no stage-1 model; run 02 first or pass --init scratch")
    if args.temporal_blocks is None:
        args.temporal_blocks = 5 if args.init == "scratch" else saga_config(args.init, "bin")["temporal_blocks"]
    rows, features = read_index(args.features), features_recipe(args.features)
    if not args.preset:
        print_preset("03_attribute.py", sys.argv[1:] if argv is None else argv, len(rows))
    made_from = {"level": level, "features": features, "index_sha256": index_digest(rows)}
    made_from |= {"table_sha256": file_digest(args.generators)}
    if args.test_features:
        made_from["test_index_sha256"] = index_digest(read_index(args.test_features))
        made_from["tested_features"] = features_recipe(args.test_features)
    made_from["init_sha256"] = None if args.init == "scratch" else file_digest(args.init)
    made_from["code"] = code_of(main, *([LOSSES[args.loss]] if args.loss != "ce" else []))
    recipe = make_recipe(vars(args), PATHS, MACHINE, ("keras",), **made_from)
    checkpoint = checkpoint_file(run, level)
    if (finished := finished_metrics(run / f"{level}.json", recipe, args.overwrite, [checkpoint])) is not None:
        return finished
    print_other_code(args.features, features)
    split = choose_videos(
        rows,
        level,
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
    if args.init != "scratch":
        start_from(model, args.init, features)
    optimizer = adamw(
        args.schedule, args.learning_rate, args.decay_steps, args.warmup_steps, epochs * steps, args.weight_decay
    )
    losses, weights = stage_two_loss(args.loss, args.ce_weight, args.margin, args.positives, args.normalize)
    model.compile(optimizer, losses, loss_weights=weights, metrics={"logits": ["accuracy"]})

    # ---------------------------------------------------------------- train
    windows = Windows(split.train)
    labels = np.array([row.label for row in split.train])[windows.video]
    with WindowBatches(windows, labels, batch_size, args.seed, args.batching, processes(), steps) as batches:
        mining = dict(loss=args.loss, margin=args.margin, positives=args.positives, normalize=args.normalize)
        measure = partial(mined_pairs, **mining) if args.loss in ("semi", "hnm") else None
        epoch_end = EpochEnd(level, run, recipe, batches, split.val, args.batch_size, args.patience, measure)
        epochs_done = epoch_end.restore(model, epochs)  # by an interrupted run
        print_training(split, batches, args.labels_per_class)
        model.fit(
            served(batches, args.data_service, epochs) if args.data_service else batches,
            epochs=epochs,
            initial_epoch=epochs_done,
            steps_per_epoch=steps,
            shuffle=False,
            callbacks=[Interruption(), keras.callbacks.TerminateOnNaN(), epoch_end, *tensorboard(run / "logs" / level)],
            verbose=1 if sys.stdout.isatty() else 2,
        )
    if is_main_process():
        save_model(model, run / f"{level}_last.keras", recipe)
    if epoch_end.best:
        model.set_weights(epoch_end.best)
    if args.head == "means":
        class_means_head(model, split.train, args.batch_size)

    # ---------------------------------------------------------------- evaluate
    metrics, arrays = evaluate(model, split, level, args.batch_size)
    print_results(metrics)

    # ---------------------------------------------------------------- save
    metrics |= {"steps": int(optimizer.iterations.numpy())}
    metrics |= {"recipe": recipe | {"seconds": round(time.time() - started, 1)}}
    if is_main_process():
        save_model(model, run / f"{level}.keras", recipe)
        write_arrays(run / f"{level}_embeddings.npz", arrays | {"recipe": recipe})
        draw_figures(metrics, arrays, run)
        write_json(run / f"{level}.json", metrics)  # last: it marks the run as finished
        checkpoint.unlink(missing_ok=True)
        print(f"model, metrics and figures are in {run}")
    return metrics


if __name__ == "__main__":
    run_script(main)
