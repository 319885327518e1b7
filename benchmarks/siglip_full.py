"""Stage 01 with a SigLIP-So400m of full size and random weights on one clip: seconds and peak memory by dtype.

    python benchmarks/siglip_full.py

The clip has 8 frames: one window of tokens, 8 x 729 x 1152. Seconds are of the whole command: import, load, trace,
encode. The preset (1.8 GB; its text encoder, which nobody uses, is kept small) is written to a temporary folder and
read as the real one is. Random weights cost the time and memory of trained ones; their tokens mean nothing, so only
what a dtype changes in them is reported.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def write_preset(folder):
    from common import keras, keras_hub  # not in the process that measures

    keras.utils.set_random_seed(0)
    sizes = dict(hidden_dim=1152, num_heads=16, intermediate_dim=4304)
    vision = keras_hub.models.SigLIPVisionEncoder(14, num_layers=27, image_shape=(384, 384, 3), **sizes)
    text = keras_hub.models.SigLIPTextEncoder(64, 1152, num_layers=1, max_sequence_length=8, **sizes)
    keras_hub.models.SigLIPBackbone(vision, text).save_to_preset(folder)
    stretch = dict(scale=1 / 127.5, offset=-1.0, interpolation="bicubic", crop_to_aspect_ratio=False)
    keras_hub.layers.SigLIPImageConverter((384, 384), **stretch).save_to_preset(folder)


def measure(*arguments):
    """Seconds and peak memory (GiB) of a Python command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{arguments[0]} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def read_tokens(features):
    (file,) = Path(features).rglob("*.npz")
    return np.load(file)["tokens"].astype(np.float64)


def main(place):
    measure(ROOT / "simulate_videos.py", "--out", place / "zoo", "--clips-per-generator", 1, "--limit", 1)
    clip = next((place / "zoo" / "Sora").iterdir())
    (place / "clip.csv").write_text(f"path,generator\n{clip},Sora\n")
    measure(__file__, place / "preset")
    found = {}
    for dtype in ("float32", "bfloat16", "mixed_bfloat16"):
        flags = ["--videos", place / "clip.csv", "--features", place / dtype, "--equalize"]
        flags += ["--encoder", place / "preset", "--encoder-dtype", dtype]
        seconds, memory = measure(ROOT / "01_extract_features.py", *flags)
        found[dtype] = read_tokens(place / dtype)
        change = (found[dtype] - found["float32"]).std() / found["float32"].std()
        print(
            f"{dtype:14} {found[dtype].shape}  {seconds:.0f} s in all, peak {memory:.1f} GiB, RMS change {change:.4f}"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_preset(sys.argv[1])
    else:
        print(f"{os.cpu_count()} cores, Keras on {os.environ.get('KERAS_BACKEND', 'tensorflow')}")
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
