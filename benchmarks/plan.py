"""What GenVideo costs: bytes, hours and machines for a full cache, a pooled one, an int8 one, and a stream.

    python benchmarks/plan.py                                     measures this machine, a few minutes; 6 GB
    python benchmarks/plan.py --machine NAME --encode-rate 900 --decode-rate 4000 --step-rate 60 --pooled-step-rate 200
    python benchmarks/plan.py --encoder-dtype bfloat16 --dtype mixed_bfloat16       on a GPU: measures it
    python benchmarks/plan.py --render                            writes the table of what is in results/plan.json anew

Rates are of one machine: `decode` and `encode` in frames a second (H.264 of 1024 x 576 with SigLIP's preparation, on
all cores; a SigLIP-So400m of full size with random weights, which costs the time of trained ones), `read` and `write`
in bytes a second of features files past the page cache, `step` and `pooled step` in windows a second of training SAGA
on 729 and on 81 tokens a frame. A rate given by flag is not measured. Rates of processors are by CPU time, as if all
cores were free. Each machine's rates stay in results/plan.json under its name, beside how they were found;
results/plan.md is computed from them and stands in README.md.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tokens.dataset import Windows, features_file, read_batches, read_json, write_features, write_json  # noqa: E402

# Clips: Table S-1 of SAGA's supplement. Seconds: the lengths in the table of DeMamba's README
# (github.com/chenhaoxing/DeMamba), the middle where it gives a range: Kinetics-400 5-10, Youku-mPLUG 10-120, SD 2-6,
# SEINE 2-4, Sora up to 60. Real's two sources are its 260,232 and 953,279 clips.
GENVIDEO = {
    "Kinetics-400": (260_232, 7.5),
    "Youku-mPLUG": (953_279, 65),
    "ZeroScope": (133_169, 3),
    "I2VGen-XL": (61_975, 2),
    "SVD": (149_026, 4),
    "VideoCrafter": (39_485, 2),
    "Pika": (98_377, 3),
    "DynamiCrafter": (46_205, 3),
    "SD": (200_720, 4),
    "SEINE": (24_737, 3),
    "Latte": (149_979, 2),
    "OpenSora": (177_410, 2),
    "ModelScope": (700, 4),
    "MorphStudio": (700, 2),
    "MoonValley": (626, 3),
    "HotShot": (700, 1),
    "Show_1": (700, 4),
    "Gen2": (1_380, 4),
    "Crafter": (1_400, 4),
    "Lavie": (1_400, 2),
    "Sora": (56, 30),
}
FPS, FRAMES, TOKENS, DIM, POOL, EPOCHS = 8, 8, 729, 1152, 3, 10  # Sec. S-2
RATES = {"decode": "frames", "encode": "frames", "read": "bytes", "write": "bytes"}
RATES |= {"step": "windows", "pooled step": "windows"}


# ---------------------------------------------------------------- the plan


def windows_of(clips, seconds=None) -> int:
    """Windows of all clips, cut to their first `seconds` where given."""
    lengths = ((count, min(length, seconds or length)) for count, length in clips.values())
    return sum(count * math.ceil(length * FPS / FRAMES) for count, length in lengths)


def plan(rates, windows, apart) -> dict[str, dict]:
    """Bytes kept, hours to make them and hours of 10 epochs on one machine, by option, for a number of windows.

    Decoding, disk, encoder and training overlap, so the slowest decides; where encoder and training share one
    processor, as they do in a stream, their times add, and on a machine without an accelerator decoding's too
    (`apart` is False).
    """
    frames = windows * FRAMES
    full = 2 * frames * TOKENS * DIM

    def hours(amount, rate):
        return amount / rates[rate] / 3600

    def joined(*times):
        return max(times) if apart else sum(times)

    making = joined(hours(frames, "decode"), hours(frames, "encode"))

    def cache(size, step):
        return {
            "bytes": size,
            "make": max(making, hours(size, "write")),
            "train": EPOCHS * max(hours(size, "read"), hours(windows, step)),
        }

    streamed = joined(hours(frames, "decode"), hours(frames, "encode") + hours(windows, "step"))
    return {
        "full cache": cache(full, "step"),
        f"`--pool {POOL}` cache": cache(full // POOL**2, "pooled step"),
        "int8 cache": cache(frames * TOKENS * (DIM + 2), "step"),  # a float16 scale per token
        "streaming": {"bytes": 0, "make": 0.0, "train": EPOCHS * streamed},
    }


def render(results, int8=None) -> list[str]:
    """The tables' lines: the plan of each machine, then the rates that it comes of."""
    few, all_ = windows_of(GENVIDEO, 1), windows_of(GENVIDEO)
    clips = sum(count for count, _ in GENVIDEO.values())
    lines = [
        f"GenVideo, {clips:,} clips, {EPOCHS} epochs; first second of each clip ({few:,} windows) / whole clips"
        f" ({all_:,}, of which {windows_of({'': GENVIDEO['Youku-mPLUG']}) / all_:.0%} are Youku-mPLUG's).",
        "",
        "| machine | option | TB kept | hours to make | hours to train | machines for a day |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, machine in results["machines"].items():
        options = [plan(machine["rates"], windows, machine["apart"]) for windows in (few, all_)]
        for option in options[0]:
            if option == "int8 cache" and not int8:
                continue
            cells = [name, f"int8 cache ({int8})" if option == "int8 cache" else option]
            pair = [own[option] for own in options]
            cells.append(" / ".join(number(own["bytes"] / 1e12) for own in pair))
            for key in ("make", "train"):
                cells.append(" / ".join(number(own[key]) for own in pair))
            cells.append(" / ".join(f"{math.ceil((own['make'] + own['train']) / 24):,}" for own in pair))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| machine | " + " | ".join(f"{rate}, {unit}/s" for rate, unit in RATES.items()) + " | how |"]
    lines += ["|" + " --- |" * (len(RATES) + 2)]
    for name, machine in results["machines"].items():
        cells = [f"{machine['rates'][rate]:.3g}" for rate in RATES]
        lines.append(f"| {name} | {' | '.join(cells)} | {machine['how']} |")
    return lines


def number(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def int8_word(path):
    """What benchmarks/int8.py found, in a few words, or None where int8 is not harmless or was not measured."""
    if not path.exists():
        return None
    from int8 import differences, harmless

    found = read_json(path)["features"]
    if not all(harmless(result) for result in found):
        return None
    words = (f"{100 * differences(one).mean():+.1f} ± {100 * differences(one).std(ddof=1):.1f}" for one in found)
    return f"measured on {' and '.join(one['encoder'] for one in found)}: {', '.join(words)} points at GEN-L"


# ---------------------------------------------------------------- rates of this machine


def write_clip(path, seconds=3, fps=8):
    """A clip as most of GenVideo's are: 1024 x 576, 8 frames a second; blurred noise that moves."""
    random = np.random.default_rng(0)
    noise = cv2.GaussianBlur(random.integers(0, 255, (576, 1024 + 16 * seconds * fps, 3), np.uint8), (0, 0), 3)
    noise = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 1024, 576, "yuv420p"
        for i in range(seconds * fps):
            image = np.ascontiguousarray(noise[:, 16 * i :][:, :1024])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())


def decode_rate(encoder, folder, clips=24):
    from tokens.videos import sample_frames

    write_clip(folder / "clip.mp4")

    def work(_):
        return sum(encoder.prepare(frame) is not None for _, frame in sample_frames(folder / "clip.mp4", FPS))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(os.cpu_count())))  # warm
        started = time.process_time()
        frames = sum(pool.map(work, range(clips)))
    return frames * os.cpu_count() / (time.process_time() - started)


def clock():
    """Seconds, of all cores where they compute: CPU time, so that other work on the machine does not count."""
    return time.perf_counter() if accelerator() else time.process_time() / os.cpu_count()


def repeated_rate(work, amount, seconds=4):
    """Amount a second of a work that is repeated for some seconds, once it is warm."""
    work()
    started, done = clock(), 0
    while not done or clock() - started < seconds:
        work()
        done += amount
    return done / (clock() - started)


def encode_rate(encoder, batch):
    size = encoder.prepare.size
    frames = list(np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32))
    return repeated_rate(lambda: encoder.encode(frames), batch)


def step_rate(tokens, batch, dtype):
    from common import build_saga, keras

    keras.utils.clear_session()
    model = build_saga(2, tokens=tokens, dtype=dtype)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-5), {"logits": loss})
    x = np.random.default_rng(0).normal(size=(batch, FRAMES, tokens, DIM)).astype(np.float16)
    y = dict.fromkeys(("logits", "embedding", "attention"), np.arange(batch) % 2)
    return repeated_rate(lambda: float(np.ravel(model.train_on_batch(x, y))[0]), batch)


def disk_rates(folder, files=48):
    """Bytes a second written and read, as windows at random, of features files that the page cache does not hold."""
    tokens = np.random.default_rng(0).normal(size=(1, FRAMES, TOKENS, DIM)).astype(np.float16)
    rows = [{"features": folder, "path": str(i), "windows": 1} for i in range(files)]
    started = time.perf_counter()
    for row in rows:
        write_features(features_file(folder, row["path"]), tokens, np.zeros((1, FRAMES)), np.ones((1, FRAMES)))
        drop(features_file(folder, row["path"]))
    written = files * tokens.nbytes / (time.perf_counter() - started)
    windows, order = Windows(rows, memory=0), np.random.default_rng(1).permutation(files)
    for row in rows:
        drop(features_file(folder, row["path"]))
    started = time.perf_counter()
    for _ in read_batches(windows, order.reshape(-1, 4)):
        pass
    return written, files * tokens.nbytes / (time.perf_counter() - started)


def drop(path):
    """Have a file on the disk and not in memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def accelerator():
    """Whether Keras's backend computes on something else than the processor."""
    from common import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"))


def measure(args, given):
    """The rates of this machine that were not given, and whether it has an accelerator."""
    rates, apart = dict(given), accelerator()
    wanted = RATES.keys() - given.keys()
    with tempfile.TemporaryDirectory(dir=args.disk) as folder:
        folder = Path(folder)
        if wanted & {"write", "read"}:
            written, read = disk_rates(folder)
            rates = {"write": written, "read": read} | rates
        if wanted & {"decode", "encode"}:
            from siglip_full import write_preset

            from tokens.encoders import build_encoder

            write_preset(str(folder / "preset"))
            encoder = build_encoder(str(folder / "preset"), dtype=args.encoder_dtype)
            if "decode" in wanted:
                rates["decode"] = decode_rate(encoder, folder)
            if "encode" in wanted:
                rates["encode"] = encode_rate(encoder, 64 if apart else 4)
            del encoder
    for name, tokens in (("step", TOKENS), ("pooled step", TOKENS // POOL**2)):
        if name in wanted:
            rates[name] = step_rate(tokens, 64 if apart else 2, args.dtype)
    return rates, apart


def describe(args, given):
    """How a machine's rates were found."""
    from common import keras

    measured = [rate for rate in RATES if rate not in given]
    if not measured:
        return "given"
    load = os.getloadavg()[2]
    words = f"{os.cpu_count()} cores, {keras.backend.backend()}, {args.encoder_dtype}, {args.dtype}, load {load:.0f}"
    return words + (f"; {', '.join(given)} given" if given else "")


# ---------------------------------------------------------------- the command


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--machine", help="its name in the table; without it this machine's cores")
    for rate, unit in RATES.items():
        add(f"--{rate.replace(' ', '-')}-rate", type=float, help=f"{unit} a second, instead of measuring")
    add("--encoder-dtype", default="float32", help="what SigLIP computes in")
    add("--dtype", default="float32", help="what SAGA computes in")
    add("--disk", help="folder on the disk that is measured")
    add("--shared", action="store_true", help="encoder and decoding share a processor; measured where it is not given")
    add("--render", action="store_true", help="write the table of what was measured before")
    return parser.parse_args(argv)


def write_tables():
    results = read_json(ROOT / "results" / "plan.json", ("machines",))
    lines = render(results, int8_word(ROOT / "results" / "int8.json"))
    (ROOT / "results" / "plan.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def main(argv=None):
    args = get_args(argv)
    path = ROOT / "results" / "plan.json"
    if not args.render:
        given = {rate: getattr(args, f"{rate.replace(' ', '_')}_rate") for rate in RATES}
        given = {rate: value for rate, value in given.items() if value}
        rates, apart = measure(args, given) if len(given) < len(RATES) else (given, not args.shared)
        how = describe(args, given)
        name = args.machine or f"{os.cpu_count()} cores"
        machines = json.loads(path.read_text(encoding="utf-8"))["machines"] if path.exists() else {}
        machines[name] = {"rates": rates, "apart": apart, "how": how}
        write_json(path, {"machines": machines})
    print("\n".join(write_tables()))


if __name__ == "__main__":
    main()
