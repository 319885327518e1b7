"""Stage 1 (Sec. 3, S-2): pretrain SAGA's video transformer to tell real from fake, with cross-entropy.

reads   features/<set>/: tokens (S, L, T, D) per video, index-*.csv, recipe.json (01_extract_features.py)
writes  runs/<run>/bin.keras        the epoch best on val, the start of stage 2; bin_last.keras the last one
        runs/<run>/bin.json         metrics on the test split, with the recipe
        runs/<run>/bin_embeddings.npz  embedding (V, D), probabilities (V, 2), video, generator, class, split (V,)
        runs/<run>/stream/          with --videos: the index and recipe of the features that were not stored
        runs/<run>/bin_history.csv, logs/bin (TensorBoard), bin_confusion.png, bin_roc.png, bin_tsne_*.png

    python 02_pretrain_binary.py --batch-size 32 --epochs 5 --learning-rate 3e-4 --decay-steps 0
    python 02_pretrain_binary.py --videos data/genvideo --encoder siglip --run runs/genvideo      without a cache

The defaults are the paper's, made for 1.6 million videos: its rate of 1e-5 hardly moves on a small set. The line above
is what `make demo` passes for the simulated zoo: a minute on two cores, accuracy 0.91 (majority 0.75). Interrupted,
the same command goes on from the last finished epoch and ends with the same result.
"""

import argparse
import time

from common import keras, run_script
from tokens.dataset import Windows, read_index
from tokens.split import choose_videos
from training.callbacks import (
    add_training_arguments,
    at_once,
    finished_metrics,
    fit,
    make_optimizer,
    make_recipe,
    new_model,
    save_run,
)
from training.devices import use_devices, writes
from training.evaluation import draw_figures, evaluate, print_results
from training.streaming import open_stream, parse_stream_arguments


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_training_arguments(parser, labels_per_class="all")
    return parse_stream_arguments(parser, argv)


def main(argv=None):
    args = get_args(argv)
    started = time.time()
    use_devices(args.tpu)

    # ---------------------------------------------------------------- load
    rows, windows = open_stream(args) if "videos" in args else (read_index(args.features), Windows)
    recipe = make_recipe("bin", args, rows)
    if done := finished_metrics("bin", args, recipe):
        return done
    videos = choose_videos(rows, "bin", args)

    # ---------------------------------------------------------------- model
    model = new_model(args, videos.classes)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make_optimizer(args), {"logits": cross_entropy}, metrics={"logits": ["accuracy"]})

    # ---------------------------------------------------------------- train
    fit(model, videos, "bin", args, recipe, windows)

    # ---------------------------------------------------------------- evaluate
    metrics, arrays = evaluate(model, videos, "bin", at_once(args), windows)
    print_results(metrics)

    # ---------------------------------------------------------------- save
    if writes():
        save_run(model, metrics, arrays, args, recipe, started)
        draw_figures(metrics, arrays, args.run)
    return metrics


if __name__ == "__main__":
    run_script(main)
