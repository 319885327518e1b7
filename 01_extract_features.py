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
Many machines: `--shard I/N` on each, two on one part do no harm; `--shard 1/N --check` prints the parts to do again.
"""

import argparse
import errno
import math
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from common import HERE, load_generators, positive, run_script
from tokens.dataset import (
    INDEX_SECONDS,
    add_to_index,
    features_file,
    forget_renamed,
    read_index,
    set_splits,
    write_features,
)
from tokens.encoders import encode_videos
from tokens.extraction import add_encoder_arguments, encoder_of, make_recipe, open_features, print_videos, relabel
from tokens.videos import TooShortError, header_seconds, list_videos, reason


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--videos", default="data/zoo", help="folder of videos, or a CSV: path,generator[,group,stratum,split]")
    add("--features", default="features/zoo", help="folder to write")
    add_encoder_arguments(parser)
    add("--limit", type=positive, help="at most this many videos per generator: a small run")
    add("--shard", type=shard, default=(1, 1), metavar="I/N", help="do the I-th of N equal parts, 1/N to N/N")
    add("--check", action="store_true", help="extract nothing; print which of the N parts lack videos, as 3,17")
    add(
        "--equalize",
        type=even_size,
        nargs="?",
        const=128,
        metavar="SIZE",
        help="first make every clip one H.264 clip of SIZE x SIZE, --frames frames at --fps; 128 without SIZE",
    )
    add("--batch-size", type=positive, default=64, help="frames per call of the encoder")
    add("--generators", default=HERE / "generators.csv", help="the generator table")
    add("--overwrite", action="store_true", help="extract anew what is there")
    return parser.parse_args(argv)


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


# ---------------------------------------------------------------- what there is to do


def is_done(row, old, features):
    """Extracted before, or left out for good; errors are tried again."""
    if row["path"] not in old:
        return False
    error = old[row["path"]]["error"]
    return error.startswith(TooShortError.REASON) if error else features_file(features, row["path"]).is_file()


def check_shards(rows, args):
    """Print the numbers of the parts with videos that no worker has finished; {part: how many}. Reads no video."""
    indexes = any(Path(args.features).glob("index-*-of-*.csv"))
    old = {row["path"]: row for row in read_index(args.features)} if indexes else {}
    done = [row["path"] in old and (old[row["path"]]["error"] or is_done(row, old, args.features)) for row in rows]
    parts = args.shard[1]
    counts = {part: sum(not one for one in done[part - 1 :: parts]) for part in range(1, parts + 1)}
    for part, count in (found := {part: count for part, count in counts.items() if count}).items():
        print(f"part {part}/{parts}: {count} of {len(rows[part - 1 :: parts])} videos are missing", file=sys.stderr)
    print(",".join(map(str, found)))
    return found


def check_space(rows, args, recipe):
    """Print what will be written, estimated from the headers of up to 64 videos; ValueError when it cannot fit."""

    def windows_of(row):
        samples = args.frames if args.equalize else header_seconds(row["file"]) * args.fps
        return max(1, math.ceil(samples / args.frames))

    sample = rows[:: -(-len(rows) // 64) or 1]
    with ThreadPoolExecutor(args.threads) as pool:
        windows = round(sum(pool.map(windows_of, sample)) * len(rows) / max(1, len(sample)))
    needed = 2 * windows * args.frames * recipe["tokens"] * recipe["dim"]
    free = shutil.disk_usage(args.features).free
    print(f"to write: {len(rows)} videos, about {windows} windows, {size_text(needed)}; free: {size_text(free)}")
    if needed > free:
        raise ValueError(
            f"{args.features}: about {size_text(needed)} would be written and {size_text(free)} are free; "
            "try --pool, --limit, --shard on several disks, or another --features"
        )


def size_text(size):
    unit = max(0, min(4, (int(size).bit_length() - 1) // 10))
    return f"{size / 1024**unit:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


# ---------------------------------------------------------------- saving


def save(row, video, features):
    """Write a video's features and complete its index row; returns what is wrong with the file, or None."""
    try:
        if isinstance(video, Exception):
            raise video
        write_features(features_file(features, row["path"]), video.tokens, video.times, video.valid)
        row |= video.info | {"windows": len(video.tokens), "error": ""}
        return f"damaged, read up to {video.times[-1, -1]:.1f} s" if video.damaged else None
    except Exception as error:  # noted in the index; a full disk is another matter
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        row["error"] = reason(error)
        return row["error"]


def main(argv=None):
    args = get_args(argv)
    started = time.time()

    # ---------------------------------------------------------------- load
    table = load_generators(args.generators)
    if args.check:
        return check_shards(list_videos(args.videos, table, args.limit)[0], args)
    encoder = encoder_of(args)
    rows, ignored = list_videos(args.videos, table, args.limit)
    recipe = make_recipe(args, encoder, rows, args.equalize)
    old = open_features(args.features, recipe, args.overwrite)
    forget_renamed(rows, old, args.features)
    set_splits(rows, {row["group"]: row["split"] for row in old.values()})
    print_videos(rows, ignored, table, args.videos)
    part, parts = args.shard
    mine, todo, finished = rows[part - 1 :: parts], [], []
    for row in mine:
        if args.overwrite or not is_done(row, old, args.features):
            todo.append(row)
        elif relabel(row, old[row["path"]]):
            finished.append(row)
    check_space(todo, args, recipe)

    # ---------------------------------------------------------------- encode, save
    index, saved = Path(args.features) / f"index-{part}-of-{parts}.csv", time.time()
    sizes = args.fps, args.frames, args.equalize, args.batch_size, args.threads
    videos = encode_videos([row["file"] for row in todo], encoder, *sizes, spill=args.features)
    bar = tqdm(total=len(todo), unit="clip", dynamic_ncols=True, disable=not todo)
    try:
        with bar, closing(videos):
            for number, video in videos:
                row = todo[number]
                if note := save(row, video, args.features):
                    bar.write(f"{row['source']}: {note}")
                finished.append(row)
                bar.update()
                if time.time() - saved > INDEX_SECONDS:
                    add_to_index(index, finished)
                    finished, saved = [], time.time()
    finally:
        add_to_index(index, finished)

    # ---------------------------------------------------------------- report
    seconds = time.time() - started
    short = sum(row["error"].startswith(TooShortError.REASON) for row in mine)
    failed = sum(bool(row["error"]) for row in mine) - short
    done = [row for row in todo if not row["error"]]
    counts = {"videos": len(done), "windows": sum(row["windows"] for row in done), "skipped": len(mine) - len(todo)}
    counts |= {"failed": failed, "short": short, "seconds": seconds, "clips_per_second": len(done) / seconds}
    print(
        f"{args.features}: {counts['videos']} videos, {counts['windows']} windows in {seconds:.0f} s "
        f"({counts['clips_per_second']:.1f} clips/s); {counts['skipped']} were there, {failed} failed"
        + (f", {short} too short to equalize" if short else "")
    )
    if failed > 0.1 * len(mine):
        raise ValueError(f"{failed} of {len(mine)} videos could not be read; the column error of {index} says why")
    return counts


if __name__ == "__main__":
    run_script(main)
