"""Videos to tokens: frames at 8 per second in windows of 8, through a frozen encoder, cached once (SAGA, Sec. S-2).

reads   --videos, a folder or a CSV with the columns path,generator[,group,stratum,split]. Folders: <Generator>/,
        Real/ + Fake/<Generator>/, or <set>/{0_real,1_fake}/. Videos, animated GIF and WebP; stills are one frame.
writes  <features>/<Generator>/<path>.npz   tokens (S, L, T, D) float16, times (S, L) in seconds, valid (S, L): False
                                            where the last frame is repeated as padding
        <features>/index-<i>-of-<n>.csv     a row per video: path, generator, group, stratum, split, windows, fps,
                                            size, length, container, codec, error, source
        <features>/recipe.json              encoder, tokens (T), dim (D), options, versions

    python 01_extract_features.py --videos data/zoo --features features/zoo
    python 01_extract_features.py --encoder siglip --encoder-dtype bfloat16 --videos data/zoo --features features/siglip

The simulated zoo takes about 20 seconds and 110 MB on two cores with `dct`. A second run does only what is missing.
Many machines: `--shard I/N` on each, one machine a part.
"""

import argparse
import errno
import math
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import av
import cv2
from tqdm import tqdm

from basics.artifacts import differing, git_commit, read_json, versions, write_json
from basics.running import InputError, positive, run_script
from tokens.dataset import (
    add_to_index,
    features_file,
    forget_renamed,
    index_files,
    read_index,
    write_features,
)
from tokens.encoders import DTYPES, encode_videos
from tokens.generators import TABLE, load_generators
from tokens.listing import describe, list_videos
from tokens.pretrained import ENCODERS, build_encoder
from tokens.split import set_splits
from tokens.videos import header_seconds, reason
from tokens.writing import TooShortError

INDEX_SECONDS = 30  # while it is being made, an index on disk is at most this old
BESIDES = ("simulated", "preset")  # all else in a recipe decides about the tokens


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # what is read and written
    add("--videos", default="data/zoo", help="folder of videos, or a CSV: path,generator[,group,stratum,split]")
    add("--features", default="features/zoo", help="folder to write")
    add("--generators", default=str(TABLE), help="the generator table")
    add("--limit", type=positive, help="at most this many clips per generator: a small run")
    add("--shard", type=shard, default=(1, 1), metavar="I/N", help="do the I-th of N equal parts, 1/N to N/N")
    add("--overwrite", action="store_true", help="extract anew what is there")
    # frames
    add("--fps", type=frame_rate, default=8, help="frames sampled per second")
    add("--frames", type=positive, default=8, help="frames per window (L)")
    add(
        "--equalize",
        type=even_size,
        nargs="?",
        const=128,
        metavar="SIZE",
        help="first make every clip one H.264 clip of SIZE x SIZE, --frames frames at --fps; 128 without SIZE",
    )
    # encoder
    add("--encoder", default="dct", help=f"{', '.join(ENCODERS)}, or a KerasHub preset of the last three")
    add("--layer", help="clip: projection (768-d) or pooled (1024-d); mobilenet: conv_pw_1 to conv_pw_13")
    add("--encoder-weights", metavar="FILE", help="mobilenet: weights for a machine that cannot download them")
    add("--encoder-dtype", choices=DTYPES, help="of a pretrained encoder; without it float32")
    add("--pool", type=int, default=1, help="average the token grid over POOL x POOL neighbours")
    # speed
    add("--batch-size", type=positive, default=64, help="frames per call of the encoder")
    add("--threads", type=positive, default=os.cpu_count(), help="videos decoded at once")
    return parser.parse_args(argv)


def frame_rate(text):
    if not 0 < (number := float(text)) <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1000 frames per second")
    return int(number) if number.is_integer() else number


def even_size(text):
    if (number := int(text)) < 128 or number % 2:
        # the same frames gave x264 other bytes on every few tries at up to 98 pixels, and never from 112 on
        raise argparse.ArgumentTypeError(f"{text} is not an even size of at least 128")
    return number


def shard(text):
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 1 to N")
    return int(part), int(parts)


# ---------------------------------------------------------------- the folder: its recipe, its index, what is to do


def is_simulated(rows):
    """Whether any video lies in a zoo of simulate_videos.py: a folder of generators' folders and a recipe."""
    zoos = {Path(folder).parent / "recipe.json" for folder in {os.path.dirname(row.file) for row in rows}}
    return any(recipe.is_file() and bool(read_json(recipe).get("simulated")) for recipe in zoos)


def recipe_of(args, encoder, rows):
    """How features are made: the encoder and its options, frames and windows."""
    recipe = {"encoder": encoder.name, "tokens": encoder.tokens, "dim": encoder.dim, "frames": args.frames}
    recipe |= {"fps": args.fps, "pool": args.pool, "equalize": args.equalize, "dtype": "float16"}
    recipe |= encoder.recipe | {"simulated": is_simulated(rows)}
    made_with = versions("keras", "keras-hub") | {"opencv": cv2.__version__, "av": av.__version__}
    return recipe | {"versions": made_with, "git": git_commit()}


def open_features(folder, recipe, overwrite):
    """The index rows already in a features folder, by path; writes its recipe when it is new.

    Raises InputError when the folder holds features made in another way, unless they are to be overwritten.
    """
    path = Path(folder) / "recipe.json"
    old = read_json(path) if path.exists() else recipe
    if keys := differing(old, recipe, BESIDES):
        if not overwrite:
            values = {key: f" {old[key]} there, {recipe[key]} now" for key in old.keys() & recipe.keys()}
            differences = ", ".join(key + values.get(key, "") for key in keys)
            raise InputError(
                f"{folder} holds other features ({differences}); choose another --features, or --overwrite"
            )
        for index in index_files(folder):
            index.unlink(missing_ok=True)  # its rows describe the other features
    if keys or not path.exists():
        write_json(path, recipe)  # makes the folder
    return {row.path: row for row in read_index(folder)} if index_files(folder) else {}


def print_videos(rows, ignored, table, videos):
    groups, splits = {}, Counter(row.split for row in rows)
    for row in rows:
        groups.setdefault(row.generator, set()).add(row.group)
    shares = ", ".join(f"{splits[split]} {split}" for split in ("train", "val", "test"))
    print(f"{videos}: {len(rows)} videos of {len(groups)} generators ({shares})")
    unseen = sorted(name for name in groups if name not in table)
    single = sorted(name for name in groups if name in table and len(groups[name]) == 1)
    if unseen:
        print(f"outside the generator table, kept as unseen: {', '.join(unseen)}")
    if single:
        print(f"a single group, so train only and not evaluated: {', '.join(single)}")
    if any(ignored.values()):
        print(f"ignored: {describe(ignored)}")


def is_done(row, old, features):
    """Extracted before, or left out for good; errors are tried again."""
    if row.path not in old:
        return False
    error = old[row.path].error
    return error.startswith(TooShortError.REASON) if error else features_file(features, row.path).is_file()


def relabel(row, old):
    """A row as the index has it, with the group, stratum and split that it has now."""
    return old._replace(group=row.group, stratum=row.stratum, split=row.split, source=row.source, file=row.file)


def check_space(rows, args, recipe):
    """Print what will be written, estimated from the headers of up to 64 videos; InputError when it cannot fit."""

    def windows_of(row):
        samples = args.frames if args.equalize else header_seconds(row.file) * args.fps
        return max(1, math.ceil(samples / args.frames))

    sample = rows[:: -(-len(rows) // 64) or 1]
    with ThreadPoolExecutor(args.threads) as pool:
        windows = round(sum(pool.map(windows_of, sample)) * len(rows) / max(1, len(sample)))
    needed = 2 * windows * args.frames * recipe["tokens"] * recipe["dim"]
    free = shutil.disk_usage(args.features).free
    print(f"to write: {len(rows)} videos, about {windows} windows, {size_text(needed)}; free: {size_text(free)}")
    if needed > free:
        raise InputError(
            f"{args.features}: about {size_text(needed)} would be written and {size_text(free)} are free; "
            "try --pool, --limit, --shard on several disks, or another --features"
        )


def size_text(size):
    unit = max(0, min(4, (int(size).bit_length() - 1) // 10))
    return f"{size / 1024**unit:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def save(row, video, features):
    """Write a video's features; its completed row, and what is wrong with the file, or None."""
    try:
        if isinstance(video, Exception):
            raise video
        write_features(features_file(features, row.path), video.tokens, video.times, video.valid)
        row = row._replace(**video.info, windows=len(video.tokens), error="")
        return row, f"damaged, read up to {video.times[-1, -1]:.1f} s" if video.damaged else None
    except Exception as error:  # noted in the index; a full disk is another matter
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return row._replace(error=reason(error)), reason(error)


def main(argv=None):
    args = get_args(argv)
    started = time.time()

    # ---------------------------------------------------------------- load
    table = load_generators(args.generators)
    encoder = build_encoder(args.encoder, args.pool, args.layer, args.encoder_weights, args.encoder_dtype)
    rows, ignored = list_videos(args.videos, table, args.limit)
    recipe = recipe_of(args, encoder, rows)
    old = open_features(args.features, recipe, args.overwrite)
    forget_renamed(rows, old, args.features)
    rows = set_splits(rows, {row.group: row.split for row in old.values()})
    print_videos(rows, ignored, table, args.videos)
    part, parts = args.shard
    mine, todo, finished, there = rows[part - 1 :: parts], [], [], []
    for row in mine:
        if args.overwrite or not is_done(row, old, args.features):
            todo.append(row)
        else:
            there.append(relabel(row, old[row.path]))
            finished += [there[-1]] if there[-1][:13] != old[row.path][:13] else []
    check_space(todo, args, recipe)

    # ---------------------------------------------------------------- encode, save
    index, saved = Path(args.features) / f"index-{part}-of-{parts}.csv", time.time()
    sizes = args.fps, args.frames, args.equalize, args.batch_size, args.threads
    videos = encode_videos([row.file for row in todo], encoder, *sizes, spill=args.features)
    bar = tqdm(total=len(todo), unit="clip", dynamic_ncols=True, disable=not todo)
    try:
        with bar, closing(videos):
            for number, video in videos:
                row, note = todo[number], None
                row, note = save(row, video, args.features)
                todo[number] = row
                if note:
                    bar.write(f"{row.source}: {note}")
                finished.append(row)
                bar.update()
                if time.time() - saved > INDEX_SECONDS:
                    add_to_index(index, finished)
                    finished, saved = [], time.time()
    finally:
        add_to_index(index, finished)

    # ---------------------------------------------------------------- report
    seconds = time.time() - started
    mine = todo + there
    short = sum(row.error.startswith(TooShortError.REASON) for row in mine)
    failed = sum(bool(row.error) for row in mine) - short
    done = [row for row in todo if not row.error]
    counts = {"videos": len(done), "windows": sum(row.windows for row in done), "skipped": len(mine) - len(todo)}
    counts |= {"failed": failed, "short": short, "seconds": seconds, "clips_per_second": len(done) / seconds}
    print(
        f"{args.features}: {counts['videos']} videos, {counts['windows']} windows in {seconds:.0f} s "
        f"({counts['clips_per_second']:.1f} clips/s); {counts['skipped']} were there, {failed} failed"
        + (f", {short} too short to equalize" if short else "")
    )
    if failed > 0.1 * len(mine):
        raise InputError(f"{failed} of {len(mine)} videos could not be read; the column error of {index} says why")
    return counts


if __name__ == "__main__":
    run_script(main)
