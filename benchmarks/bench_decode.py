"""Frames at 8 per second of a clip of 10 s, 1280 x 720 at 30 per second, H.264: ours, OpenCV, PyAV, decord.

Each side gives RGB frames in a list. They are compared: converted by other code, the same frame differs by a level or
two; another frame of this clip, whose picture moves, differs by far more.
"""

import tempfile
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from measuring import alternated, compared, run_side, seconds_of, side

RATE = 8
FULL, TINY = dict(seconds=10, width=1280, height=720, repeats=5), dict(seconds=2, width=320, height=180, repeats=1)
ROUNDS = 3
SIDES = {
    "opencv": "OpenCV, every frame read",
    "opencv_grab": "OpenCV, every frame grabbed, the wanted ones retrieved",
    "pyav": "PyAV, every frame decoded, on threads",
    "decord": "decord",
}


def cases(args):
    return [("", partial(measure, TINY if args.tiny else FULL, 1 if args.tiny else ROUNDS))]


def measure(sizes, rounds):
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        side(__file__, "write_clip", path=clip, sizes=sizes)
        run = {
            name: partial(side, __file__, name, clip=clip, repeats=sizes["repeats"], out=Path(folder) / f"{name}.npy")
            for name in ("ours", *SIDES)
        }
        found = alternated(rounds, **run)
        what = f"{sizes['seconds'] * RATE} frames of {sizes['seconds']} s of {sizes['width']} x {sizes['height']}"
        return [
            compared(what, text, found["ours"], found[name], note=apart["note"])
            for name, text in SIDES.items()
            for apart in [side(__file__, "difference", folder=folder, name=name)]
        ]


def write_clip(path, sizes, rate=30) -> dict:
    """A texture that moves under a light that moves, as a camera pans; key frames are those of x264's defaults."""
    random, width, height = np.random.default_rng(0), sizes["width"], sizes["height"]
    noise = [cv2.resize(random.normal(0, 20, (h, 3 * h, 3)), (3 * width, height)) for h in (4, 16, 64, height // 2)]
    texture = np.clip(128 + sum(noise), 0, 255).astype(np.uint8)
    lefts = [round(width * i / (sizes["seconds"] * rate)) * 2 for i in range(sizes["seconds"] * rate)]
    from tokens.writing import write_mp4

    write_mp4(path, (np.ascontiguousarray(texture[:, left : left + width]) for left in lefts), rate)
    return {}


def difference(folder, name) -> dict:
    """How far apart the frames of two sides are, in words."""
    files = [Path(folder) / "ours.npy", Path(folder) / f"{name}.npy"]
    if not all(file.exists() for file in files):
        return {"note": ""}
    ours, theirs = (np.load(file).astype(np.int16) for file in files)
    if ours.shape != theirs.shape:
        return {"note": f"OTHER FRAMES: {len(theirs)}, ours {len(ours)}"}
    apart = np.abs(ours - theirs).mean(axis=(1, 2, 3)).max()
    moved = np.abs(ours[1:] - theirs[:-1]).mean(axis=(1, 2, 3)).min()
    same = "equal frames" if apart < moved / 4 else "OTHER FRAMES"
    return {"note": f"{same}: at most {apart:.2f} grey levels apart, neighbours {moved:.1f}"}


# ---------------------------------------------------------------- the sides


def measured(read, repeats, out):
    frames = []

    def work():
        frames[:] = read()

    seconds = seconds_of(work, repeats)
    np.save(out, np.stack([frame[::4, ::4] for frame in frames]))  # enough of each to be compared
    return {"seconds": seconds}


def ours(clip, repeats, out):
    from tokens.videos import sample_frames

    return measured(lambda: [frame for _, frame in sample_frames(clip, RATE)], repeats, out)


def wanted(count, rate):
    """Numbers of the frames on screen at each k / 8 of a clip at a constant rate."""
    return [int(k * rate / RATE + 1e-3) for k in range(int(np.ceil(count / rate * RATE - 1e-3)))]


def opencv(clip, repeats, out, grab=False):
    def read():
        video, frames = cv2.VideoCapture(clip), []
        places = set(wanted(video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)))
        for number in range(max(places) + 1):
            if grab:
                found = video.grab()
                image = video.retrieve()[1] if number in places else None
            else:
                found, image = video.read()
            if found and number in places:
                frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        video.release()
        return frames

    return measured(read, repeats, out)


def opencv_grab(clip, repeats, out):
    return opencv(clip, repeats, out, grab=True)


def pyav(clip, repeats, out):
    def read():
        with av.open(clip) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"  # PyAV's default is slower
            places = set(wanted(stream.frames, float(stream.average_rate)))
            decoded = enumerate(container.decode(stream))
            return [frame.to_ndarray(format="rgb24") for number, frame in decoded if number in places]

    return measured(read, repeats, out)


def decord(clip, repeats, out):
    import decord

    def read():
        video = decord.VideoReader(clip)
        return list(video.get_batch(wanted(len(video), video.get_avg_fps())).asnumpy())

    return measured(read, repeats, out)


if __name__ == "__main__":
    run_side(globals())
