"""Videos to tokens: frames at 8 per second in windows of 8, through a frozen encoder, cached once (SAGA, Sec. S-2).

reads   --videos, a folder or a CSV with the columns path,generator[,group,stratum,split]. Folders: <Generator>/
        and other layouts (tokens/listing.py). Videos, animated GIF and WebP; stills are one frame.
writes  <features>/<Generator>/<path>.npz   tokens (S, L, T, D) float16, times (S, L) in seconds, valid (S, L): False
                                            where the last frame is repeated as padding; row: the clip's index row
        <features>/index-<i>-of-<n>.csv     a row per video that is there now: path, generator, group, stratum, split,
                                            windows, fps, size, length, container, codec, error, source
        <features>/recipe.json              encoder, tokens (T), dim (D), options, versions

    python 01_extract_features.py --videos data/zoo --features features/zoo
    python 01_extract_features.py --encoder siglip --encoder-dtype bfloat16 --videos data/zoo --features features/siglip

The simulated zoo takes about 20 seconds and 110 MB on two cores with `dct`. A second run encodes only what is missing,
and a video that was deleted leaves the index. Clips of the same bytes or the same frames share a group. Many machines:
`--shard I/N` on each, one machine a part; one run without it then finds the same frames in two parts.
"""

import argparse
import errno
import itertools
import math
import os
import shutil
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from basics.artifacts import git_commit, read_json, refuse_other, versions, write_json
from basics.code import code_of
from basics.running import InputError, part_of_parts, positive, printable, reason, run_script
from tokens.dataset import (
    SAME_TOKENS,
    features_file,
    read_row,
    room_for_tokens,
    tokens_digest,
    write_features,
    write_index,
    write_row,
)
from tokens.encoders import DTYPES, ENCODERS, encode_clips, once
from tokens.generators import TABLE, load_generators
from tokens.listing import list_videos
from tokens.pretrained import build_encoder, maker_of
from tokens.split import byte_keys, frame_keys, picture_digest, print_copies, print_videos, set_splits
from tokens.videos import Video
from tokens.writing import TooShortError, equalize

CHUNK = 32  # frames that a thread hands over at a time


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
    add("--shard", type=part_of_parts, default=(1, 1), metavar="I/N", help="do the I-th of N equal parts, 1/N to N/N")
    add("--overwrite", action="store_true", help="extract again what is there")
    # frames
    add("--fps", type=frame_rate, default=8, help="frames sampled per second")
    add("--frames", type=positive, default=8, help="frames per window (L)")
    equal = "first make every clip one H.264 clip of SIZE x SIZE, --frames frames at --fps; 128 without SIZE"
    add("--equalize", type=even_size, nargs="?", const=128, metavar="SIZE", help=equal)
    # encoder
    add("--encoder", default="dct", help=f"{', '.join(ENCODERS)}, or a KerasHub preset of SigLIP, DINOv2 or CLIP")
    add("--layer", help="clip: projection (768-d) or pooled (1024-d); mobilenet: conv_pw_1 to conv_pw_13")
    add("--encoder-weights", metavar="FILE", help="mobilenet: weights for a machine that cannot download them")
    add("--encoder-dtype", choices=DTYPES, help="of a pretrained encoder; without it float32")
    add("--pool", type=int, default=1, help="average the token grid over POOL x POOL neighbours")
    # speed
    add("--encoder-batch", type=positive, default=64, help="frames per call of the encoder")
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


# ---------------------------------------------------------------- a clip: its frames, its windows


@dataclass
class Clip:
    """A clip on its way through the encoder."""

    facts: dict[str, str]  # fps, size, length, container, codec
    tokens: np.ndarray  # (M, T, D): room for those of N frames and for padding
    encoded: int = 0  # frames whose tokens are there
    pictures: set[bytes] = field(default_factory=set)  # picture_digests of its frames
    damage: str | None = None  # what the reader says once it has read all that can be read

    def add(self, tokens):
        """Store the tokens (n, T, D) of its next frames as float16, infinite where they are too large."""
        with np.errstate(over="ignore"):
            self.tokens[self.encoded : self.encoded + len(tokens)] = tokens
        self.encoded += len(tokens)


def read_clip(row, encoder, fps, frames, size, folder):
    """Yield (Clip, prepared frames) of a video at `fps`, some frames at a time and none at its end."""

    @once
    def prepare(frame):
        clip.pictures.add(picture_digest(frame))
        return encoder.prepare(frame)

    file = row.file
    if size:
        with Video(file) as video:
            file = equalize(video.sample(fps), size, fps, frames)
    with Video(file) as video:
        room = math.ceil(len(video.numbers(fps)) / frames) * frames, encoder.tokens, encoder.dim
        clip, samples = Clip(video.facts(), room_for_tokens(room, folder)), video.sample(fps)
        while prepared := [prepare(frame) for _, frame in itertools.islice(samples, CHUNK)]:
            yield clip, prepared
        clip.damage = video.damage
    yield clip, []


def make_windows(tokens, count, frames, fps):
    """Cut the tokens (M, T, D) of `count` (N) frames, with room for padding, into windows of `frames` (L).

    Returns tokens (S, L, T, D), times (S, L) and valid (S, L), False where the last frame is repeated as padding.
    """
    number = np.arange(math.ceil(count / frames) * frames).reshape(-1, frames)  # (S, L)
    tokens[count : number.size] = tokens[count - 1]  # in place: an hour of video is not copied
    windows = tokens[: number.size].reshape(*number.shape, *tokens.shape[1:])
    if not np.isfinite(windows).all():
        raise InputError(
            "tokens above 65504, float16's largest number, or not finite; choose another --encoder or --encoder-dtype"
        )
    return windows, np.minimum(number, count - 1) / fps, number < count


# ---------------------------------------------------------------- the folder: its recipe, what is there


def recipe_of(args, encoder, rows):
    """How features are made: the encoder and its options, frames and windows; whether any video is simulated."""
    recipe = {"encoder": encoder.name, "tokens": encoder.tokens, "dim": encoder.dim, "frames": args.frames}
    recipe |= {"fps": args.fps, "pool": args.pool, "equalize": args.equalize, "dtype": "float16"} | encoder.recipe
    zoos = {Path(folder).parent / "recipe.json" for folder in {os.path.dirname(row.file) for row in rows}}
    recipe["simulated"] = any(os.path.isfile(zoo) and bool(read_json(zoo).get("simulated")) for zoo in zoos)
    made_with = versions("keras", "keras-hub") | {"opencv": cv2.__version__, "av": av.__version__}
    code = code_of(read_clip, make_windows, encode_clips, maker_of(args.encoder))
    return recipe | {"versions": made_with, "git": git_commit(), "code": code}


def open_features(folder, recipe, overwrite):
    """Write the recipe of a folder that is new or is overwritten. Raises InputError where it holds other features."""
    path = Path(folder) / "recipe.json"
    old = read_json(path) if path.exists() else None
    if old and not overwrite:
        refuse_other(folder, old, recipe, "choose another --features, or --overwrite", SAME_TOKENS)
    for index in Path(folder).glob("index-*-of-*.csv") if old and tokens_digest(old) != tokens_digest(recipe) else ():
        index.unlink(missing_ok=True)  # its rows describe the other features
    if overwrite or not old:
        write_json(path, recipe)  # makes the folder


def read_finished(rows, folder, digest):
    """{path: row} and {path: frame_keys} in the features files of this digest that are no older than their videos."""
    finished, keys = {}, {}
    for row in rows:
        file = features_file(folder, row.path)
        with suppress(OSError, ValueError):  # no such file, or a damaged one
            if os.path.getmtime(file) >= os.path.getmtime(row.file):
                kept, made_by, own = read_row(file)
                if made_by == digest:
                    finished[row.path], keys[row.path] = kept, own
    return finished, keys


def main(argv=None):
    args = get_args(argv)
    started, (part, parts) = time.time(), args.shard

    # ---------------------------------------------------------------- load
    table = load_generators(args.generators)
    listed, ignored = list_videos(args.videos, table, args.limit)

    # ---------------------------------------------------------------- encoder
    encoder = build_encoder(args.encoder, args.pool, args.layer, args.encoder_weights, args.encoder_dtype)
    recipe = recipe_of(args, encoder, listed)
    open_features(args.features, recipe, args.overwrite)
    digest = tokens_digest(recipe)
    finished, by_frames = read_finished(listed, args.features, digest)
    rows = set_splits(listed, finished, by_bytes := byte_keys(listed), by_frames)
    print_videos(rows, ignored, table, args.videos)
    mine, todo, index = rows[part - 1 :: parts], [], []
    for row in mine:
        if args.overwrite or row.path not in finished:
            todo.append(row)
        else:
            columns = {key: getattr(row, key) for key in ("generator", "stratum", "source")}
            index.append(finished[row.path]._replace(**columns))
    size, free = 2 * args.fps * encoder.tokens * encoder.dim / 2**20, shutil.disk_usage(args.features).free / 2**30
    print(f"to encode: {len(todo)} videos, {size:.2g} MiB a second of video; {free:.3g} GiB are free")

    # ---------------------------------------------------------------- encode, save
    how = encoder, args.fps, args.frames, args.equalize, args.features
    short, clips = 0, encode_clips(todo, lambda row: read_clip(row, *how), encoder, args.encoder_batch, args.threads)
    try:
        with closing(clips), tqdm(total=len(todo), unit="clip", dynamic_ncols=True, disable=not todo) as bar:
            for row, clip, tokens in clips:
                if len(tokens):
                    clip.add(tokens)  # (n, T, D) of its next frames
                    continue
                file = features_file(args.features, row.path)
                if not isinstance(clip, Exception):
                    try:
                        # N frames in S windows of L, the last frame repeated as padding: (S, L, T, D), (S, L), (S, L)
                        windows, times, valid = make_windows(clip.tokens, clip.encoded, args.frames, args.fps)
                        row = row._replace(windows=len(windows), **clip.facts)
                        by_frames[row.path] = frame_keys(clip.pictures)
                        write_features(file, windows, times, valid, row, digest, by_frames[row.path])
                        if clip.damage:
                            bar.write(printable(f"{row.source}: {clip.damage}"))
                    except InputError as error:  # of this file; a full disk ends all
                        if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                            raise
                        clip = error
                if isinstance(clip, Exception):
                    row, short = row._replace(windows=0, error=reason(clip)), short + isinstance(clip, TooShortError)
                    bar.write(printable(f"{row.source}: {row.error}"))
                    if row.path in finished:
                        file.unlink(missing_ok=True)  # of an older run: the row would come back from it
                index.append(row)
                bar.update()
    finally:
        final = {row.path: row for row in set_splits(listed, finished, by_bytes, by_frames)}
        split = [row._replace(group=final[row.path].group, split=final[row.path].split) for row in index]
        write_index(Path(args.features) / f"index-{part}-of-{parts}.csv", split)
        parts_now = set(Path(args.features).glob(f"index-*-of-{parts}.csv"))
        for other in set(Path(args.features).glob("index-*-of-*.csv")) - parts_now:
            other.unlink(missing_ok=True)
    for before, row in zip(index, split, strict=True):
        if before != row and not row.error:  # the index can be made again from the files
            write_row(features_file(args.features, row.path), group=row.group, split=row.split)

    # ---------------------------------------------------------------- report
    print_copies(final.values(), by_bytes, by_frames)
    seconds = time.time() - started
    skipped, failed = len(mine) - len(todo), sum(bool(row.error) for row in index) - short
    done = len(todo) - failed - short
    windows = sum(row.windows for row in index[skipped:])
    print(
        f"{args.features}: {done} videos, {windows} windows in {seconds:.0f} s ({done / seconds:.1f} clips/s);"
        f" {skipped} were there, {failed} failed" + (f", {short} too short to equalize" if short else "")
    )
    if failed > 0.1 * len(mine):
        raise InputError(f"{failed} of {len(mine)} videos could not be read; the column error of the index says why")
    counts = {"videos": done, "windows": windows, "skipped": skipped, "failed": failed, "short": short}
    return counts | {"seconds": seconds, "clips_per_second": done / seconds}


if __name__ == "__main__":
    run_script(main)
