"""Training without a features folder: windows are decoded in the background and encoded as they are asked for.

    rows, windows = open_stream(args)         index rows of --videos, and what makes windows of some of them
    windows(rows)[[3, 14]]                    tokens (2, L, T, D) float16, the same as 01 would have stored

A whole cache of GenVideo is tens of terabytes; a stream stores an index and encodes anew in every epoch. Batches are
read by a few threads of their own (`workers`): each has its videos decoded and prepared on the shared pool, then waits
for its turn at the encoder, which one thread at a time calls, while the transformer trains on the batch before.
"""

import contextlib
import functools
import math
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import load_generators, positive
from tokens.dataset import INDEX_SECONDS, set_splits, window_numbers, write_index
from tokens.extraction import add_encoder_arguments, encoder_of, make_recipe, open_features, print_videos, relabel
from tokens.split import first_per
from tokens.videos import NothingShownError, Video, list_videos, reason
from training.devices import one_device

COUNTED_AT_ONCE = 4096  # videos whose headers are asked for before the index may be saved


def parse_stream_arguments(parser, argv):
    """The arguments of a script that trains on cached features or, with --videos, on a stream.

    Without --videos the flags of the stream are left out of them: a cache's recipe says how its tokens were made.
    """
    known = vars(parser.parse_args([])).keys()
    parser.add_argument("--videos", help="train on these without a cache: folder or CSV, as 01 takes; not --features")
    add_encoder_arguments(parser)
    parser.add_argument("--encoder-batch", type=positive, default=64, help="with --videos: frames per encoder call")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    ours = vars(args).keys() - known
    if args.videos and given & {"features", "test_features"}:
        parser.error("--videos takes the place of --features and --test-features")
    if args.videos and args.data_service:
        parser.error("--data-service reads the tokens of --features; --videos has none stored")
    if not args.videos:
        if given & ours:
            flags = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in given & ours))
            parser.error(f"{flags}: for --videos; the tokens of --features are made")
        for name in ours - {"videos"}:
            delattr(args, name)
        del args.videos
    return args


# ---------------------------------------------------------------- which videos, how many windows


def open_stream(args):
    """Index rows of --videos with the split that 01 would give them, and a function from rows to StreamedWindows.

    <run>/stream becomes a features folder without tokens: recipe.json, and an index that is kept, so that a second run
    counts only what is new. Raises ValueError when it was made in another way, or one in ten videos cannot be read.
    """
    table = load_generators(args.generators)
    with one_device():
        encoder = encoder_of(args)
    rows, ignored = list_videos(args.videos, table)
    args.features = str(Path(args.run) / "stream")
    old = open_features(args.features, make_recipe(args, encoder, rows), args.overwrite, "--run")
    set_splits(rows, {row["group"]: row["split"] for row in old.values()})
    if args.limit:
        rows = first_per(rows, ("generator", "split"), args.limit, args.seed)
    print_videos(rows, ignored, table, args.videos)
    count_windows(rows, old, args)
    sizes = dict(fps=args.fps, frames=args.frames, threads=args.threads, batch_size=args.encoder_batch)
    return rows, functools.partial(StreamedWindows, encoder=SharedEncoder(encoder, **sizes))


def count_windows(rows, old, args):
    """Complete rows with what the old index knows, else from the files' timestamps; nothing is decoded."""

    def count(row):
        try:
            with Video(row["file"]) as video:
                return video.facts() | {"windows": math.ceil(len(video.numbers(args.fps)) / args.frames), "error": ""}
        except Exception as error:  # noted in the index: one bad file does not stop the others
            return {"windows": 0, "error": reason(error)}

    index, saved = Path(args.features) / "index-1-of-1.csv", time.time()
    todo = []
    for row in rows:
        if not args.overwrite and row["path"] in old and not old[row["path"]]["error"]:
            relabel(row, old[row["path"]])
        else:
            todo.append(row)
    bar = tqdm(total=len(todo), desc="counting windows", unit="clip", dynamic_ncols=True, disable=not todo)
    with bar, ThreadPoolExecutor(args.threads) as pool:
        for start in range(0, len(todo), COUNTED_AT_ONCE):
            part = todo[start : start + COUNTED_AT_ONCE]
            for row, found in zip(part, pool.map(count, part), strict=True):
                row |= found
                if row["error"]:
                    bar.write(f"{row['source']}: {row['error']}; left out")
                bar.update()
            if time.time() - saved > INDEX_SECONDS:
                write_index(index, (old | {row["path"]: row for row in rows if row["windows"]}).values())
                saved = time.time()
    write_index(index, (old | {row["path"]: row for row in rows}).values())  # --limit leaves others there
    if (failed := sum(bool(row["error"]) for row in rows)) > 0.1 * len(rows):
        raise ValueError(f"{failed} of {len(rows)} videos could not be read; the column error of {index} says why")


# ---------------------------------------------------------------- windows


class SharedEncoder:
    """A frozen encoder for one thread at a time, the threads that decode for it, and how frames are sampled."""

    def __init__(self, encoder, fps, frames, threads, batch_size):
        self.prepare, self.fps, self.batch_size = encoder.prepare, fps, batch_size
        self.encoder, self.shape = encoder, (frames, encoder.tokens, encoder.dim)
        self.pool, self.turn = ThreadPoolExecutor(threads), threading.Lock()

    def encode(self, prepared):
        """Tokens (N, T, D) float16, as 01 stores them, of N prepared frames, in calls of one size: one trace."""
        tokens = np.empty((len(prepared), *self.shape[1:]), np.float16)
        with self.turn:
            for start in range(0, len(prepared), self.batch_size):
                batch = prepared[start : start + self.batch_size]
                filled = batch + batch[-1:] * (self.batch_size - len(batch))
                tokens[start : start + self.batch_size] = self.encoder.encode(filled)[: len(batch)]
        return tokens


class StreamedWindows:
    """The windows of some videos with the interface of features.Windows; indexing decodes and encodes.

    May be indexed from several threads. A damaged end shows the last frame that could be decoded, or black where none
    can, where 01 leaves out windows without any frame; the file is named once. Raises ValueError naming a file that can
    no longer be read, or that has another number of windows than the index says.
    """

    held, workers = None, 2  # batches read at once: one decodes while the other encodes

    def __init__(self, rows, encoder: SharedEncoder):
        self.rows, self.encoder, self.shape, self.named = rows, encoder, encoder.shape, set()
        self.video = np.repeat(np.arange(len(rows)), [row["windows"] for row in rows])
        self.offset = window_numbers(self.video)

    def __len__(self):
        return len(self.video)

    def __getitem__(self, i):
        windows = np.atleast_1d(i)
        videos, own = np.unique(self.video[windows], return_inverse=True)
        decode, frames = self.encoder.pool.submit, []
        tasks = [decode(self.decode, video, self.offset[windows[own == n]]) for n, video in enumerate(videos)]
        place = np.empty((len(windows), self.shape[0]), int)  # (B, L) of each window's frames among `frames`
        for n, task in enumerate(tasks):
            prepared, places = task.result()
            place[own == n] = len(frames) + places
            frames += prepared
        tokens = self.encoder.encode(frames)[place]  # (B, L, T, D)
        return tokens if np.ndim(i) else tokens[0]

    def decode(self, video, offsets):
        """The different frames that some windows of a video need, prepared, and the places (W, L) of theirs."""
        row, fps, length = self.rows[video], self.encoder.fps, self.shape[0]
        try:
            with Video(row["file"]) as clip:
                count = len(clip.numbers(fps))
                if math.ceil(count / length) != row["windows"]:
                    raise ValueError(f"{row['windows']} windows were counted, it has {math.ceil(count / length)} now")
                samples = np.minimum(offsets[:, None] * length + np.arange(length), count - 1)  # padding: the last one
                chosen = np.unique(samples)
                prepared = [self.encoder.prepare(frame) for frame in shown(clip, fps, chosen)]
            if len(prepared) < len(chosen) and video not in self.named:
                self.named.add(video)
                print(f"{row['source']}: damaged; its last good frame, or black, stands for those after it")
            prepared = prepared or [self.encoder.prepare(last_frame(row["file"], fps))]
        except Exception as error:
            raise ValueError(
                f"{row['file']}: {reason(error)}; put the file back and the same command goes on, or take it out of"
                " --videos and start anew with --overwrite"
            ) from error
        return prepared, np.minimum(np.searchsorted(chosen, samples), len(prepared) - 1)


def shown(video, fps, chosen=None):
    """Yield the frames (H, W, 3) of some samples, or of all, up to where the rest cannot be decoded."""
    with contextlib.suppress(NothingShownError):
        for _, frame in video.sample(fps, chosen):
            yield frame


def last_frame(file, fps):
    """The last frame (H, W, 3) that can be decoded, or a black one."""
    with Video(file) as video:
        width, height = map(int, video.size.split("x"))
        frames = deque(shown(video, fps), maxlen=1)
    return frames[0] if frames else np.zeros((height, width, 3), np.uint8)
