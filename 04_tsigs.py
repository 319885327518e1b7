"""Temporal Attention Signatures (Sec. 3.1, Fig. 1a, 6, S-3): the mean attention between frames in the penultimate
temporal block, one L x L map per class, and how well such a map tells its class from the others.

reads   features/<set>/ (01_extract_features.py), runs/<run>/<level>.keras and <level>_embeddings.npz (02 or 03)
writes  runs/<run>/<level>_tsigs.npz   signatures (C, H, L, L) raw means per class and head; classes, seen, clips (C,);
                                       maps (V, L, L) per clip, the mean over heads; video, generator, class, split,
                                       group, stratum (V,); grand_mean (L, L) of other clips; with --controls also
                                       frames_shuffled_maps and untrained_maps (V, L, L), and their _grand_mean
        runs/<run>/<level>_tsigs.json  identification and correlations, of the controls too, with the recipe
        runs/<run>/<level>_tsigs.png   and _tsigs_difference.png, _tsigs_unseen.png, _tsigs_strata.png

    python 04_tsigs.py --features features/zoo --run runs/zoo --level gen

Rows of a map are the attending frames, columns the attended ones; a row sums to 1. Only windows without padding count.
Half a minute on two cores for the simulated zoo, a minute with --controls.
"""

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from basics.artifacts import file_digest, finished_metrics, make_recipe, read_arrays, write_arrays, write_json
from basics.code import code_of, print_other_code
from basics.figures import draw_maps, wrap_panels
from basics.running import InputError, batch_size, names, positive, run_script, seed
from common import LEVELS, load_saga
from tokens.dataset import (
    Windows,
    features_recipe,
    index_digest,
    other_tokens,
    read_batches,
    read_index,
    read_per_frame,
    subsample,
    usable,
)
from tokens.generators import stage_of
from training.evaluation import ROLES
from training.signatures import draw_strata, identify, measure_controls, name_strata, split_groups_in_halves, untrained

GRAND_MEAN_CLIPS = 20  # train clips per class whose mean is the grand mean


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--features", default="features/zoo", help="folder written by 01_extract_features.py")
    add("--run", default="runs/zoo", help="folder of the trained model, and for what is written")
    add("--level", choices=LEVELS, default="gen", help="attribution level")
    add("--splits", type=names, default="test,val,unseen", help=f"clips to take: some of {','.join(ROLES)}")
    add("--strata", help="CSV path,stratum, or kmeans: clusters of the mean token; default: the index's")
    add("--limit", type=positive, help="at most this many clips per generator in each split: a small run")
    add("--batch-size", type=batch_size, default=64, help="windows per step")
    add("--repeats", type=positive, default=200, help="random halvings of each class's groups")
    add("--controls", action="store_true", help="measure frames shuffled, untrained, labels permuted, across strata")
    add("--seed", type=seed, default=0, help="seed of halvings, draws and controls")
    add("--overwrite", action="store_true", help="compute again, replacing other results in the run folder")
    args = parser.parse_args(argv)
    if not args.splits or set(args.splits) - set(ROLES):
        parser.error(f"argument --splits: expected some of {','.join(ROLES)}")
    args.splits = [split for split in ROLES if split in args.splits]
    return args


# ---------------------------------------------------------------- which clips


def choose_clips(path, index, features, classes, splits, limit, seed):
    """Rows of the clips of `splits` and of the grand mean's, with split and class name as in the embeddings file at
    `path`; and the paths of the grand mean's.
    """
    arrays = read_arrays(path, ("video", "generator", "class", "split"), "run its stage again")
    known, rows = {row.path: row for row in usable(index, features)}, []
    for video, generator, label, split in zip(*(values.tolist() for values in arrays.values()), strict=True):
        if split not in (*splits, "train"):
            continue
        if video not in known:
            raise InputError(f"{features} lacks {video} of {path}; run its stage again")
        if split == "unseen":
            label = generator if generator not in classes else f"{generator} (unseen)"
        elif label not in classes:
            raise InputError(f"{path}: {label} is no class of the model beside it; run its stage again")
        rows.append(known[video]._replace(generator=generator, class_name=label, split=split))
    if limit:
        rows = subsample(rows, ("generator", "split"), limit, seed)
    train = [row for row in rows if row.split == "train"]
    in_grand_mean = {row.path for row in subsample(train, ("class_name",), GRAND_MEAN_CLIPS, seed)}
    return [row for row in rows if row.split in splits or row.path in in_grand_mean], in_grand_mean


def drop_padded(rows, splits, in_grand_mean):
    """The rows with a window without padding, the numbers (n,) of such windows among all of theirs, and how many clips
    of `splits` have none, by class.
    """
    with tqdm(rows, "windows", unit="clip", dynamic_ncols=True) as bar:
        full = [read_per_frame(row, "valid").all(axis=1) for row in bar]  # (S,) each
    kept = [row for row, windows in zip(rows, full, strict=True) if windows.any()]
    padded = [row for row, windows in zip(rows, full, strict=True) if not windows.any()]
    clips_without = Counter(row.class_name for row in padded if row.split in splits)
    if clips_without:
        print("left out, no window without padding:", ", ".join(f"{name} {n}" for name, n in clips_without.items()))
    if len(left := {row.class_name for row in kept if row.split in splits}) < 2:
        what = f"T-Sigs compare classes, but windows without padding have only: {', '.join(left) or 'none'}"
        raise InputError(f"{what}; widen --splits or --limit, or extract longer clips")
    if not any(row.path in in_grand_mean for row in kept):
        raise InputError("no train clip has a window without padding, so there is no grand mean; extract longer clips")
    return kept, np.flatnonzero(np.concatenate([windows for windows in full if windows.any()])), clips_without


# ---------------------------------------------------------------- signatures (Sec. 3.1)


def attention_maps(model, windows, full_windows, labels, batch_size, what="attention", orders=None):
    """Each clip's map (V, L, L), the mean over its windows of `full_windows` (n,) and over heads, and each class's sum
    of its clips (C, H, L, L). Labels (V,) of -1 enter no sum. `orders` (V, L) re-orders the frames of clips.
    """
    frames, heads = model.config["frames"], model.config["heads"]
    maps = np.zeros((len(labels), frames, frames), "float32")
    sums = np.zeros((labels.max() + 2, heads, frames, frames))  # the last one is that of label -1
    weight = 1 / np.bincount(windows.video[full_windows], minlength=len(labels))  # of a window in its clip's mean
    batches = [full_windows[start : start + batch_size] for start in range(0, len(full_windows), batch_size)]
    filled = [np.resize(batch, batch_size) for batch in batches]  # of one size, so that the model is compiled once
    progress = tqdm(read_batches(windows, filled), what, len(batches), unit="batch", dynamic_ncols=True)
    for batch, place, tokens in zip(batches, filled, progress, strict=True):
        if orders is not None:
            tokens = np.take_along_axis(tokens, orders[windows.video[place]][:, :, None, None], axis=1)
        attention = model.predict_on_batch(tokens)["attention"][: len(batch)]  # (b, H, L, L)
        clip = windows.video[batch]  # (b,)
        weighted = attention * weight[clip][:, None, None, None]
        np.add.at(maps, clip, weighted.mean(axis=1))
        np.add.at(sums, labels[clip], weighted)
    return maps, sums[:-1]


# ---------------------------------------------------------------- tables and figures


def print_tables(metrics, title):
    print(f"\n{title}\nsignatures of n of {metrics['used']} clips, matched between halves of each class's groups")
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


def draw_tsigs(per_class, class_names, signatures, title, stem):
    """T-Sigs (C, L, L), their differences, and seen beside unseen classes."""
    labels = [f"{name}\nclips: {per_class[name]['clips']}" for name in class_names]
    panels = list(zip(labels, signatures, strict=True))
    draw_maps(wrap_panels("", panels), f"{title}\nT-Sigs", f"{stem}.png")
    differences = wrap_panels("", list(zip(labels, signatures - signatures.mean(axis=0), strict=True)))
    draw_maps(differences, f"{title}\nT-Sigs less their mean over classes", f"{stem}_difference.png", diverging=True)
    seen = sum(per_class[name]["seen"] for name in class_names)  # the first ones
    if seen < len(panels):
        grid = wrap_panels("seen", panels[:seen]) + wrap_panels("unseen", panels[seen:])
        draw_maps(grid, f"{title}\nT-Sigs, seen and unseen", f"{stem}_unseen.png")


def main(argv=None):
    args, started = get_args(argv), time.time()

    # ---------------------------------------------------------------- load
    stem = f"{args.run}/{args.level}_tsigs"
    files = [Path(args.run) / f"{args.level}{ending}" for ending in (".keras", "_embeddings.npz")]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"{missing[0]} is missing; run {stage_of(args.level)} first")
    index = read_index(args.features)
    made_from = {"index_sha256": index_digest(index), "features": features_recipe(args.features), "code": code_of(main)}
    made_from |= {"model_sha256": file_digest(files[0]), "embeddings_sha256": file_digest(files[1])}
    made_from["strata_sha256"] = hashlib.sha256("\n".join(row.stratum for row in index).encode()).hexdigest()
    if args.strata:
        made_from["strata_sha256"] = "kmeans" if args.strata == "kmeans" else file_digest(args.strata)
    recipe = make_recipe(vars(args), ("features", "run", "strata"), ("overwrite",), ("keras",), **made_from)
    if (done := finished_metrics(f"{stem}.json", recipe, args.overwrite)) is not None:
        return done
    model = load_saga(files[0], args.level)
    print_other_code(files[0], model.config["recipe"])
    if differ := other_tokens(made_from["features"], model.config["features"]):
        raise InputError(f"{files[0]}: other features than {args.features} ({', '.join(differ)}); train it on these")
    if other := model.config["recipe"].get("paths", {}).get("test_features"):
        raise InputError(f"{files[0]} was tested on {other}; T-Sigs need a run whose clips are all in one folder")
    classes = model.config["class_names"]
    rows, in_grand_mean = choose_clips(files[1], index, args.features, classes, args.splits, args.limit, args.seed)
    rows, full_windows, left_out = drop_padded(rows, args.splits, in_grand_mean)
    unseen = ({row.class_name for row in rows} | set(left_out)) - set(classes)
    class_names = np.array([*classes, *sorted(unseen)])
    labels = np.array([class_names.tolist().index(row.class_name) for row in rows])
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    selected = np.array([row.split in args.splits for row in rows])
    in_grand_mean = np.array([row.path in in_grand_mean for row in rows])
    strata = np.array([row.stratum or "none" for row in rows])
    source = "the index" if any(row.stratum for row in rows) else None
    if args.strata:
        strata, source = name_strata(rows, index, args.strata)

    # ---------------------------------------------------------------- attention maps
    clips = Windows(rows), full_windows, np.where(selected, labels, -1), args.batch_size
    maps, sums = attention_maps(model, *clips)
    conditions = {"trained": maps}
    if args.controls:
        orders = np.random.default_rng(args.seed).permuted(np.tile(np.arange(maps.shape[1]), (len(rows), 1)), axis=1)
        conditions["frames shuffled"], _ = attention_maps(model, *clips, "frames shuffled", orders)
        conditions["untrained"], _ = attention_maps(untrained(model, args.seed), *clips, "untrained")

    # ---------------------------------------------------------------- means per class
    counts = np.bincount(labels[selected])
    present = np.flatnonzero(counts)
    signatures = sums[present] / counts[present, None, None, None]  # (C, H, L, L)

    # ---------------------------------------------------------------- halves
    # Is a signature of one half of a class's groups the nearest to that of the other half, among those of all classes?
    used, tables, arrays = selected & ~in_grand_mean, {}, {}
    for name, own in conditions.items():
        means = [own[in_grand_mean & (labels == i)].mean(axis=0, dtype=float) for i in np.unique(labels[in_grand_mean])]
        grand_mean = np.mean(means, axis=0)  # over classes, of train clips
        compared = own[used], grand_mean, labels[used], groups[used]
        tables[name] = identify(*compared, split_groups_in_halves, args.repeats, args.seed)
        key = "" if name == "trained" else f"{name.replace(' ', '_')}_"
        arrays |= {f"{key}maps": own[selected], f"{key}grand_mean": grand_mean}
    if args.controls:
        compared = maps[used], arrays["grand_mean"], labels[used], groups[used]
        tables |= measure_controls(*compared, strata[used], args.repeats, args.seed)

    # ---------------------------------------------------------------- figures
    roles = Counter(row.split for row in rows if row.split in args.splits)
    metrics = {"level": args.level, "videos": roles.total(), "splits": dict(roles)}
    metrics |= {"simulated": bool(model.config["features"].get("simulated")), "per_class": {}}
    for i, name in enumerate(class_names.tolist()):
        chosen = selected & (labels == i)
        entry = {"seen": name in classes, "clips": int(chosen.sum()), "groups": len(set(groups[chosen].tolist()))}
        metrics["per_class"][name] = entry | {"clips_without_full_window": left_out[name]}
    metrics["strata"] = {"source": source, "clips": Counter(strata[selected].tolist())}
    metrics |= {"used": int(used.sum()), "grand_mean_clips": int(in_grand_mean.sum()), "tables": tables}
    title = f"{args.level.upper()}-L, {roles.total()} clips of {', '.join(roles)}{', simulated' * metrics['simulated']}"
    print_tables(metrics, title)
    for ending in ("unseen", "strata"):  # may be of an earlier run
        Path(f"{stem}_{ending}.png").unlink(missing_ok=True)
    draw_tsigs(metrics["per_class"], class_names[present].tolist(), signatures.mean(axis=1), title, stem)
    if source:
        what = f"{title}\nT-Sigs by content; strata: {source}"
        draw_strata(maps[selected], labels[selected], class_names, strata[selected], what, f"{stem}_strata.png")

    # ---------------------------------------------------------------- save
    arrays |= {"signatures": signatures, "classes": class_names[present], "clips": counts[present]}
    arrays |= {"seen": present < len(classes), "class": class_names[labels[selected]]}
    arrays |= {"stratum": strata[selected], "recipe": recipe}
    for key, field in {"video": "path", "generator": "generator", "split": "split", "group": "group"}.items():
        arrays[key] = np.array([getattr(row, field) for row in rows if row.split in args.splits])
    write_arrays(f"{stem}.npz", arrays)
    metrics |= {"recipe": recipe | {"seconds": round(time.time() - started, 1)}}
    write_json(f"{stem}.json", metrics)
    print(f"signatures, numbers and figures are in {args.run}")
    return metrics


if __name__ == "__main__":
    run_script(main)
