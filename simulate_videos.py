"""A zoo of simulated generators: clips of Real and of the 19 generators of Table S-1, as H.264 files.

Content, size, rate, length and encoder settings have one distribution in all classes. The classes differ only in
their marks, simulated artefacts:

    SD version   a spatial residue: a faint grid of the decoder, softened or sharpened detail
    team         a temporal habit with a period in seconds: flicker, blended or held frames, drift, ...
    generator    its own depth, period and phase of the team's habit
    task         I2V clips ease into motion from a still, T2V clips move from the start
    Real         sensor noise and the shake of a hand

--strength scales every mark; at 0 the classes are the same. We invented the marks, so accuracies on these clips say
nothing about real generators, and attention to the marks shows that the tool works, not that the theory holds.

In      generators.csv (or --generators FILE), one simulated generator per row
Out     <out>/<Generator>/<index>.mp4   48 frames of 128 x 128 at 24 per second; Real has six times as many clips
        <out>/recipe.json               what the clips were made with; a second run makes only what is missing
Run     python simulate_videos.py --out data/zoo        1500 clips, 25 MB, 40 seconds on two idle cores
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from basics.artifacts import read_json, refuse_other, versions, write_atomically, write_json
from basics.code import code_of
from basics.running import InputError, not_negative, positive, run_script
from tokens.generators import TABLE, load_generators
from tokens.writing import write_mp4

FRAMES, FPS, SIZE = 48, 24, 128
X264 = {"crf": "18", "preset": "veryfast", "threads": "1"}  # with one thread the bytes never vary
REAL_TIMES = 6  # clips of Real per clip of a generator, so that "always Fake" is not a good classifier

# ---------------------------------------------------------------- marks

RESIDUES = {  # SD version: waves per 8 pixels (the decoder's stride) across and down; fine detail lifted or lost
    "SD 1.4": ((2, 0), -0.10),
    "SD 1.5": ((2, 1), 0.08),
    "SD 2.1": ((1, 2), -0.05),
    "SDXL": ((0, 2), 0.10),
}
HABITS = {  # team: habit, period in seconds
    "Spencer Sterling": ("flicker", 0.4),
    "Alibaba Group": ("blend", 0.5),
    "Stability AI": ("drift", 4.0),
    "Tencent AI Lab": ("flicker", 0.8),
    "Pika": ("tint", 0.4),
    "Shanghai AI Lab-2": ("smooth", 0.4),
    "Shanghai AI Lab-1": ("focus", 0.6),
    "HPC-AI Tech": ("hold", 0.6),
    "MorphStudio": ("tint", 0.8),
    "MoonValley": ("hold", 0.9),
    "Hotshot Co.": ("surge", 0.7),
    "Show Lab": ("focus", 0.4),
    "Runway": ("contrast", 0.4),
    "OpenAI": ("contrast", 0.8),
}
DEPTHS = {  # habit: its depth at strength 1, as a fraction
    "flicker": 0.2,  # of the brightness
    "drift": 0.25,  # of the brightness
    "tint": 0.2,  # of red and blue
    "contrast": 0.35,
    "focus": 0.7,  # of the fine detail
    "blend": 0.9,  # of an earlier frame
    "smooth": 0.8,  # of the average of earlier frames
    "hold": 0.7,  # of the period that stands still
    "surge": 0.9,  # of the speed
}
GRID, NOISE, SHAKE = 0.5, 1.0, 0.5  # at strength 1, in grey levels, grey levels and pixels
EASE_SECONDS, BLEND_SECONDS = 0.8, 0.125


class Mark(NamedTuple):
    """The artefacts of a generator at strength 1, or of one of its clips."""

    waves: tuple[int, int]
    grid: float
    detail: float
    habit: str = "none"
    period: float = 1.0  # seconds
    phase: float = 0.0  # in cycles
    depth: float = 0.0
    ease: float = 0.0  # fraction of clips that ease into motion: I2V 1, T2V 0, Mixed 0.5
    noise: float = 0.0
    shake: float = 0.0


def named_random(*names) -> np.random.Generator:
    """Random numbers that depend on the names alone: equal in every process, whatever else is made."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def generator_mark(name: str, task: str, sd_version: str, team: str) -> Mark:
    """The mark of a row of the generator table; what the tables above lack is drawn from its name."""
    if name == "Real":
        return Mark((0, 0), 0.0, 0.0, noise=NOISE, shake=SHAKE)
    # A closed model has a decoder too: one of the known ones, drawn by the team's name.
    drawn = list(RESIDUES)[named_random("residue", team).integers(len(RESIDUES))]
    waves, detail = RESIDUES.get(sd_version, RESIDUES[drawn])
    random = named_random("habit", team)
    drawn = str(random.choice(list(DEPTHS))), random.uniform(0.4, 0.9)
    habit, period = HABITS.get(team, drawn)
    random = named_random("generator", name)
    period, phase = period * random.uniform(0.85, 1.15), random.uniform()
    depth = DEPTHS[habit] * random.uniform(0.75, 1.25)
    return Mark(waves, GRID, detail, habit, period, phase, depth, {"T2V": 0.0, "I2V": 1.0}.get(task, 0.5))


def clip_mark(mark: Mark, strength: float, random: np.random.Generator) -> Mark:
    """One clip's mark: the generator's, scaled, with every level and the phase a little off."""
    levels = ("grid", "detail", "depth", "noise", "shake")
    scaled = {level: getattr(mark, level) * strength * random.uniform(0.5, 1.5) for level in levels}
    ease = min(strength, 1.0) * (random.uniform() < mark.ease)
    return mark._replace(**scaled, phase=mark.phase + random.uniform(-0.15, 0.15), ease=ease)


# ---------------------------------------------------------------- content: the same for all classes


def texture(random: np.random.Generator, size: int) -> np.ndarray:
    """Coloured noise from coarse to fine: (size, size, 3) uint8."""
    image = np.full((size, size, 3), random.uniform(70, 185, 3), np.float32)
    for cells, level in ((4, 30), (12, 18), (40, 9), (100, 5)):
        noise = random.standard_normal((cells, cells, 3), np.float32) * (level * random.uniform(0.4, 1.4))
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def outline(random: np.random.Generator, size: int) -> np.ndarray:
    """A polygon or an oval with a soft edge: (size, size) float32 from 0 to 1."""
    angles = np.sort(random.uniform(0, 2 * np.pi, random.choice([3, 4, 5, 30])))
    corners = size / 2 + size * random.uniform(0.2, 0.4) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = cv2.fillPoly(np.zeros((size, size), np.float32), [corners.astype(np.int32)], 1.0)
    return cv2.GaussianBlur(mask, (0, 0), random.uniform(0.8, 3.0))


def render_scene(random: np.random.Generator, times: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Shapes that cross a moving background, at times (L,) seen from camera (L, 2) pixels: (L, H, W, 3) uint8."""
    background = texture(random, 2 * SIZE)  # larger than the frame: the camera has somewhere to go
    pan, zoom, turn = random.uniform(-28, 28, 2), random.uniform(-0.12, 0.12), random.uniform(-6, 6)
    shapes = []
    for size in random.integers(36, 76, random.integers(1, 5)).tolist():
        start, speed = random.uniform(0, SIZE, 2), random.uniform(-36, 36, 2)
        shapes.append((texture(random, size), outline(random, size), start, speed))
    frames = np.empty((len(times), SIZE, SIZE, 3), np.uint8)
    for frame, time, moved in zip(frames, times, camera, strict=True):
        matrix = cv2.getRotationMatrix2D((SIZE, SIZE), turn * time, 1 + zoom * time)
        matrix[:, 2] += pan * time + moved - SIZE / 2
        cv2.warpAffine(background, matrix, (SIZE, SIZE), dst=frame, borderMode=cv2.BORDER_REFLECT)
        for image, mask, start, speed in shapes:
            paste(frame, image, mask, start + speed * time + moved)
    return frames


def paste(frame: np.ndarray, image: np.ndarray, mask: np.ndarray, place: np.ndarray):
    """Draw a shape at a place between pixels; it bounces off the frame's edges."""
    size, room = len(mask), SIZE - len(mask) - 1
    corner = room - np.abs(place % (2 * room) - room)
    x, y = corner.astype(int)
    shift = np.float32([[1, 0, corner[0] - x], [0, 1, corner[1] - y]])
    image = cv2.warpAffine(image, shift, (size, size), borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(mask, shift, (size, size))
    spot = frame[y : y + size, x : x + size]
    spot[:] = cv2.blendLinear(image, spot.copy(), mask, 1 - mask)


# ---------------------------------------------------------------- a clip: content with marks


def wave(mark: Mark, times: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * (times / mark.period + mark.phase))


def scene_times(mark: Mark, times: np.ndarray) -> np.ndarray:
    """The moments (L,) of the scene that the frames show: the marks in how motion runs."""
    if mark.habit == "hold":
        since = (times / mark.period + mark.phase) % 1 * mark.period
        times = np.where(since < min(mark.depth, 0.9) * mark.period, times - since, times)
    if mark.habit == "surge":
        times = times + mark.depth * mark.period / (2 * np.pi) * wave(mark, times)
    still = np.clip(1 - times / EASE_SECONDS, 0, 1)  # the speed rises from 0 to 1
    return times - mark.ease * EASE_SECONDS / 2 * (1 - still**2)


def camera_path(mark: Mark, random: np.random.Generator) -> np.ndarray:
    """Smooth random positions (L, 2) in pixels: the shake of a hand."""
    steps = random.standard_normal((FRAMES + 8, 2))
    return mark.shake * np.stack([np.convolve(column, np.hanning(9), "valid") for column in steps.T], axis=1)


def mix_frames(mark: Mark, frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mix frames (L, H, W, 3) with earlier ones: now and then one (blend), or always several (smooth)."""
    if mark.habit not in ("blend", "smooth") or not mark.depth:
        return frames
    blend = mark.habit == "blend"
    delays = BLEND_SECONDS * np.ones(1) if blend else mark.period * np.linspace(0.25, 1, 4)
    weights = np.minimum(mark.depth * (0.5 + 0.5 * wave(mark, times) if blend else np.ones(FRAMES)), 0.9)
    mixed = np.empty(frames.shape, np.float32)
    for index, weight in enumerate(weights):
        earlier = np.maximum(index - np.rint(delays * FPS).astype(int), 0)
        mixed[index] = (1 - weight) * frames[index] + weight * frames[earlier].mean(axis=0, dtype=np.float32)
    return mixed


def color_matrices(mark: Mark, times: np.ndarray) -> np.ndarray:
    """What multiplies each frame's colours (L, 3, 4), the offset last: flicker, drift, tint and contrast."""
    channels = {"flicker": [1, 1, 1], "drift": [1, 1, 1], "contrast": [1, 1, 1], "tint": [1, 0, -1]}
    swing = mark.depth * wave(mark, times)[:, None] * channels.get(mark.habit, [0, 0, 0])
    matrices = np.tile(np.eye(3, 4, dtype=np.float32), (FRAMES, 1, 1))
    matrices[:, range(3), range(3)] += swing
    matrices[:, :, 3] -= 128 * swing * (mark.habit == "contrast")
    return matrices


def render_clip(clip_seed: int, mark: Mark, strength: float) -> np.ndarray:
    """A clip (L, H, W, 3) uint8. The class enters by its mark alone: at strength 0 only the seed counts."""
    mark = clip_mark(mark, strength, named_random("jitter", clip_seed))
    times, sensor = np.arange(FRAMES) / FPS, named_random("sensor", clip_seed)
    frames = render_scene(named_random("content", clip_seed), scene_times(mark, times), camera_path(mark, sensor))
    frames = mix_frames(mark, frames, times)
    details = mark.detail + mark.depth * (mark.habit == "focus") * wave(mark, times)
    down, across = 2 * np.pi / 8 * np.mgrid[:SIZE, :SIZE].astype(np.float32)
    grid = mark.grid * np.cos(mark.waves[0] * across + mark.waves[1] * down + 0.6)  # 0.6: no zero at a pixel
    clip = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8)
    for index, matrix in enumerate(color_matrices(mark, times)):
        frame, detail = frames[index].astype(np.float32), details[index]
        if detail:
            frame = cv2.addWeighted(frame, 1 + detail, cv2.GaussianBlur(frame, (5, 5), 1.0), -detail, 0)
        noise = mark.noise * sensor.standard_normal((SIZE, SIZE), np.float32) if mark.noise else 0
        clip[index] = cv2.add(cv2.transform(frame, matrix), cv2.merge([grid + noise] * 3), dtype=cv2.CV_8U)
    return clip


# ---------------------------------------------------------------- files


def encode(clip: np.ndarray) -> bytes:
    """Frames (L, H, W, 3) uint8 as an H.264 mp4 file."""
    file = io.BytesIO()
    write_mp4(file, (cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420) for image in clip), FPS, **X264)
    return file.getvalue()


def make_clip(job: tuple):
    """Render and write one clip, in a worker process; the file appears whole or not at all."""
    path, seed, row, strength = job
    write_atomically(path, lambda file: file.write_bytes(encode(render_clip(seed, generator_mark(*row), strength))))


def prepare_worker():
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to answer


def make_clips(jobs: list[tuple]):
    """Make the clips on all cores. A process costs a second to start, so a few clips are made here."""
    workers = min(os.cpu_count() or 1, len(jobs) // 16)
    if workers < 2:
        list(map(make_clip, tqdm(jobs, "simulate", unit="clip")))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), prepare_worker) as pool:
        try:
            list(tqdm(pool.map(make_clip, jobs, chunksize=4), "simulate", len(jobs), unit="clip"))
        except BrokenExecutor as error:
            raise InputError("a rendering process died; run the same command to make the rest") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def zoo_recipe(seed: int, strength: float, generators: dict) -> dict:
    note = "Simulated clips: accuracies measured on them say nothing about real generators."
    clip = {"frames": FRAMES, "fps": FPS, "size": SIZE, "codec": "libx264", "pixels": "yuv420p", **X264}
    marks = {"residues": RESIDUES, "habits": HABITS, "depths": DEPTHS, "levels": [GRID, NOISE, SHAKE]}
    rows = {row.name: [row.task, row.sd_version, row.team] for row in generators.values()}
    recipe = {"simulated": True, "note": note, "seed": seed, "strength": strength, "clip": clip, "marks": marks}
    recipe |= {"generators": rows, "code": code_of(main), "versions": versions("av") | {"opencv": cv2.__version__}}
    return json.loads(json.dumps(recipe))  # as it is read back


def check_folder(out: Path, old: dict, recipe: dict, overwrite: bool):
    """Raise InputError when new clips would join clips made otherwise; when overwriting, delete the old zoo."""
    clips = list(out.glob("*/[0-9]*.mp4"))
    if (clips or old) and not (old.get("simulated") and "generators" in old):
        raise InputError(f"{out} holds what this script did not make; choose another --out")
    if overwrite:
        for clip in clips:
            clip.unlink()
        old.clear()
    if clips and old:
        both = old.get("generators", {}).keys() & recipe["generators"].keys()  # rows may be added, not changed
        was, now = (made | {"generators": {name: made["generators"][name] for name in both}} for made in (old, recipe))
        refuse_other(out, was, now, "choose another --out, or replace it with --overwrite")


def get_args(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = "Write a zoo of simulated generators as mp4 files."
    add = parser.add_argument
    add("--out", default="data/zoo", help="folder to write to")
    add("--clips-per-generator", type=positive, default=60, help=f"clips of each; Real gets {REAL_TIMES} times as many")
    add("--strength", type=not_negative, default=1.0, help="scale of every mark; at 0 the classes are the same")
    add("--seed", type=int, default=0, help="another seed makes other clips with the same marks")
    add("--overwrite", action="store_true", help="replace the zoo that is in --out")
    add("--generators", default=TABLE, help="the generator table")
    add("--limit", type=positive, help="make at most this many clips of each generator, Real included")
    return parser.parse_args(argv)


def list_clips(args, generators: dict) -> list[tuple]:
    """Every clip wanted: path, its own seed, the generator's row, strength."""
    jobs = []
    for row in generators.values():
        clips = args.clips_per_generator * (REAL_TIMES if row.name == "Real" else 1)
        for index in range(min(clips, args.limit or clips)):
            path = Path(args.out) / row.name / f"{index:04d}.mp4"
            clip_seed = int(named_random("clip", args.seed, row.name, index).integers(2**63))
            jobs.append((path, clip_seed, (row.name, row.task, row.sd_version, row.team), args.strength))
    return jobs


def main(argv=None) -> dict:
    args = get_args(argv)
    generators = load_generators(args.generators)
    recipe_path, recipe = Path(args.out) / "recipe.json", zoo_recipe(args.seed, args.strength, generators)
    old = read_json(recipe_path, {"generators?": {str: list}}) if recipe_path.exists() else {}
    check_folder(Path(args.out), old, recipe, args.overwrite)
    write_json(recipe_path, recipe | {"generators": old.get("generators", {}) | recipe["generators"]})
    wanted = list_clips(args, generators)
    missing = [job for job in wanted if not job[0].exists()]
    make_clips(missing)
    print(f"{args.out}: {len(missing)} simulated clips written, {len(wanted) - len(missing)} already there")
    return {"written": len(missing), "skipped": len(wanted) - len(missing)}


if __name__ == "__main__":
    run_script(main)
