"""Temporal Attention Signatures (Sec. 3.1, Fig. 1a, 6, S-3): the mean attention between frames in the penultimate
temporal block, one L x L map per class, and how well such a map tells its class from the others.

reads   features/<set>/ (01_extract_features.py), runs/<run>/<level>.keras and <level>_embeddings.npz (02 or 03)
writes  runs/<run>/<level>_tsigs.npz   signatures (C, H, L, L) raw means per class and head; classes, seen, clips (C,);
                                       maps (V, L, L) per clip, the mean over heads; video, generator, class, split,
                                       group, stratum (V,); grand_mean (L, L) of other clips
        runs/<run>/<level>_tsigs.json  identification, correlations and controls, with the recipe
        runs/<run>/<level>_tsigs.png   and _tsigs_difference.png, _tsigs_unseen.png, _tsigs_strata.png

    python 04_tsigs.py --features features/zoo --run runs/zoo --level gen

Rows of a map are the attending frames, columns the attended ones; a row sums to 1. Only windows without padding count.
About a minute on two cores for the simulated zoo.
"""

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from basics.artifacts import file_digest, finished_metrics, make_recipe, write_arrays, write_json
from basics.figures import draw_maps, wrap_panels
from basics.running import positive, run_script
from common import LEVELS, build_saga, keras
from tokens.dataset import Windows, features_recipe, index_digest, read_index
from training.evaluation import ROLES, batch_outputs, title
from training.signatures import (
    choose_rows,
    drop_short,
    largest_strata,
    load_trained,
    mean_of_classes,
    measure_all,
    name_strata,
    run_files,
)


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--features", default="features/zoo", help="folder written by 01_extract_features.py")
    add("--run", default="runs/zoo", help="folder of the trained model, and for what is written")
    add("--level", choices=LEVELS, default="gen", help="attribution level")
    add("--splits", type=splits, default="test,val,unseen", help=f"clips to take: some of {','.join(ROLES)}")
    add("--strata", help="CSV path,stratum of contents, or none; default: the index's, else k-means of the mean token")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--batch-size", type=positive, default=64, help="windows per step")
    add("--repeats", type=positive, default=200, help="random halvings of each class's groups")
    add("--no-controls", action="store_true", help="leave out frames shuffled, untrained model and labels permuted")
    add("--seed", type=int, default=0, help="seed of halvings, draws and controls")
    add("--overwrite", action="store_true", help="compute anew although the run folder holds other results")
    return parser.parse_args(argv)


def splits(text):
    given = [name.strip() for name in text.split(",")]
    if set(given) - set(ROLES):
        raise ValueError(text)
    return [name for name in ROLES if name in given]


# ---------------------------------------------------------------- signatures (Sec. 3.1)


def attention_maps(model, windows, whole, labels, batch_size, orders=None, what="attention"):
    """Each clip's map over its fully valid windows and heads, (V, L, L), and each class's sum of clips (C, H, L, L).

    `whole` are the numbers of those windows. Labels (V,) of -1 enter no sum. `orders` (V, L) re-orders the frames.
    """
    frames, heads = model.config["frames"], model.config["heads"]
    maps = np.zeros((len(labels), frames, frames), "float32")
    sums = np.zeros((labels.max() + 2, heads, frames, frames))  # the last one is that of label -1
    share = 1 / np.bincount(windows.video[whole], minlength=len(labels))

    def ordered(tokens, numbers):  # (B, L, T, D)
        return np.take_along_axis(tokens, orders[windows.video[numbers]][:, :, None, None], axis=1)

    batches = batch_outputs(model, windows, batch_size, whole, None if orders is None else ordered)
    count = -(-len(whole) // batch_size)
    for numbers, outputs in tqdm(batches, what, count, unit="batch", dynamic_ncols=True):
        clip = windows.video[numbers]  # (b,)
        attention = outputs["attention"] * share[clip][:, None, None, None]  # (b, H, L, L)
        np.add.at(maps, clip, attention.mean(axis=1))
        np.add.at(sums, labels[clip], attention)
    return maps, sums[:-1]


def untrained(model, seed):
    """The same sizes with weights drawn anew."""
    keras.utils.set_random_seed(seed)
    return build_saga(**model.config, dtype=model.dtype_policy)


# ---------------------------------------------------------------- numbers


def print_tables(metrics):
    print("\n" + heading(metrics, f"signatures of n of {metrics['used']} clips, found again among the classes"))
    heads = (f"{name:21}" for name in ("accuracy (95%)", "within", "between"))
    print(f"{'':15} {'n':>4} {'classes':>7} {'chance':>6}  {' '.join(heads)} raw within, between")
    for name, table in metrics["tables"].items():
        for row in table:
            cells = ((row[key], *row[f"{key}_interval"]) for key in ("accuracy", "within", "between"))
            values = " ".join(f"{value:5.2f} ({low:5.2f} to {high:5.2f})" for value, low, high in cells)
            print(f"{name:15} {row['clips']:4} {row['classes']:7.1f} {row['chance']:6.2f}  {values}", end=" ")
            print(f"{row['raw_within']:6.3f} {row['raw_between']:6.3f}")
        if not table:
            print(f"{name:15} too few clips of two classes")
    print(f"correlations: less the mean of {metrics['grand_mean_clips']} other, train clips; raw without that")
    if short := ", ".join(f"{name} {row['short']}" for name, row in metrics["per_class"].items() if row["short"]):
        print(f"left out, no window without padding: {short}")
    if ignored := metrics["strata"]["unknown_videos"]:
        print(f"ignored: {ignored} videos of {metrics['strata']['source']} that the features lack")


# ---------------------------------------------------------------- figures


def heading(metrics, what):
    return title(metrics, f"\n{what}", f"clips of {', '.join(metrics['splits'])}")


def draw_figures(metrics, signatures, maps, labels, strata, stem):
    """All figures. Signatures (L, L) by class, maps (V, L, L), labels (V,) by class name, strata (V,)."""
    per_class = metrics["per_class"]
    panels = {name: (f"{name}\nclips: {per_class[name]['clips']}", values) for name, values in signatures.items()}
    draw_maps(wrap_panels("", [*panels.values()]), heading(metrics, "T-Sigs"), f"{stem}.png")
    mean = np.mean([*signatures.values()], axis=0)
    apart = [(label, values - mean) for label, values in panels.values()]
    what = heading(metrics, "T-Sigs less their mean over classes")
    draw_maps(wrap_panels("", apart), what, f"{stem}_difference.png", diverging=True)
    seen, unseen = ([panels[name] for name in panels if per_class[name]["seen"] == kind] for kind in (True, False))
    for ending in ("unseen", "strata"):  # may be of an earlier run
        Path(f"{stem}_{ending}.png").unlink(missing_ok=True)
    if unseen:
        grid = wrap_panels("seen", seen) + wrap_panels("unseen", unseen)
        draw_maps(grid, heading(metrics, "T-Sigs, seen and unseen"), f"{stem}_unseen.png")
    source, grid = metrics["strata"]["source"], []
    for stratum in largest_strata(strata) if source else []:
        cells = {name: maps[(labels == name) & (strata == stratum)] for name in signatures}
        row = [
            (f"{name}\nclips: {len(cell)}", cell.mean(axis=0) if len(cell) else None) for name, cell in cells.items()
        ]
        grid.append((stratum, row))
    if grid:
        draw_maps(grid, heading(metrics, f"T-Sigs by content; strata: {source}"), f"{stem}_strata.png")


def main(argv=None):
    args = get_args(argv)
    started = time.time()

    # ---------------------------------------------------------------- load
    model_file, embeddings_file = run_files(args.run, args.level)
    index = read_index(args.features)
    made_from = {"features": features_recipe(args.features), "index_sha256": index_digest(index)}
    made_from |= {"model_sha256": file_digest(model_file), "embeddings_sha256": file_digest(embeddings_file)}
    made_from["strata_sha256"] = hashlib.sha256("\n".join(row.stratum for row in index).encode()).hexdigest()
    if args.strata:
        made_from["strata_sha256"] = "none" if args.strata == "none" else file_digest(args.strata)
    recipe = make_recipe(vars(args), ("features", "run", "strata"), ("overwrite",), ("keras",), **made_from)
    if (done := finished_metrics(Path(args.run) / f"{args.level}_tsigs.json", recipe, args.overwrite)) is not None:
        return done
    model = load_trained(model_file, args.level, args.features)
    classes = model.config["class_names"]
    rows, in_grand_mean = choose_rows(
        embeddings_file, index, classes, args.features, args.splits, args.limit, args.seed
    )
    rows, whole, short = drop_short(rows, args.splits, in_grand_mean)
    strata, source, unknown = name_strata(rows, index, args.strata)
    # the model's classes, then unseen generators
    names = [*classes, *sorted(({row.class_name for row in rows} | set(short)) - set(classes))]
    labels = np.array([names.index(row.class_name) for row in rows])
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    asked = np.array([row.split in args.splits for row in rows])
    reference = np.array([row.path in in_grand_mean for row in rows])

    # ---------------------------------------------------------------- signatures
    clips = Windows(rows), np.flatnonzero(np.concatenate(whole)), np.where(asked, labels, -1), args.batch_size
    maps, sums = attention_maps(model, *clips)
    counts = np.bincount(labels[asked])
    present = np.flatnonzero(counts)
    signatures = sums[present] / counts[present, None, None, None]  # (C, H, L, L)
    conditions = {"trained": maps}
    if not args.no_controls:
        orders = np.tile(np.arange(maps.shape[1]), (len(rows), 1))
        orders = np.random.default_rng(args.seed).permuted(orders, axis=1)
        conditions["frames shuffled"], _ = attention_maps(model, *clips, orders, "frames shuffled")
        conditions["untrained"], _ = attention_maps(untrained(model, args.seed), *clips, what="untrained")

    # ---------------------------------------------------------------- measure
    roles = Counter(row.split for row in rows if row.split in args.splits)
    metrics = {"level": args.level, "videos": roles.total(), "splits": dict(roles)}
    metrics |= {"simulated": bool(model.config["features"].get("simulated")), "per_class": {}}
    for i, name in enumerate(names):
        own = asked & (labels == i)
        entry = {"seen": name in classes, "clips": int(own.sum()), "groups": len(set(groups[own].tolist()))}
        metrics["per_class"][name] = entry | {"short": short[name]}
    metrics["strata"] = {"source": source, "clips": Counter(strata[asked].tolist()), "unknown_videos": unknown}
    used = asked & ~reference
    metrics |= {"used": int(used.sum()), "grand_mean_clips": int(reference.sum())}
    means = {name: mean_of_classes(own[reference], labels[reference]) for name, own in conditions.items()}
    metrics["tables"] = measure_all(conditions, means, labels, groups, strata, used, args.repeats, args.seed)
    print_tables(metrics)

    # ---------------------------------------------------------------- figures
    stem, own = f"{args.run}/{args.level}_tsigs", np.array(names)[labels[asked]]
    shown = {names[i]: values.mean(axis=0) for i, values in zip(present, signatures, strict=True)}
    draw_figures(metrics, shown, maps[asked], own, strata[asked], stem)

    # ---------------------------------------------------------------- save
    arrays = {"signatures": signatures, "classes": np.array(names)[present], "clips": counts[present]}
    arrays |= {"seen": present < len(classes), "grand_mean": means["trained"], "maps": maps[asked]}
    keys = {"video": "path", "generator": "generator", "split": "split", "group": "group"}
    arrays |= {
        name: np.array([getattr(row, key) for row in rows if row.split in args.splits]) for name, key in keys.items()
    }
    arrays |= {"class": own, "stratum": strata[asked], "recipe": recipe}
    write_arrays(f"{stem}.npz", arrays)
    metrics |= {"recipe": recipe | {"seconds": round(time.time() - started, 1)}}
    write_json(f"{stem}.json", metrics)
    print(f"signatures, numbers and figures are in {args.run}")
    return metrics


if __name__ == "__main__":
    run_script(main)
