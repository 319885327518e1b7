"""Stage 1, Stage 2 and encoding at full size on one GPU, on random tokens and weights, next to PyTorch.

    KERAS_BACKEND=jax python benchmarks/gpu.py            both sides, each in processes of its own
    KERAS_BACKEND=jax python benchmarks/gpu.py --tiny     the same in seconds, to see that it runs

writes  results/gpu.json     a row per measurement: seconds a step, clips a second, share of the measured peak, GiB
        results/gpu.md       the rows as tables, with the card, the date and how long the paper's stages would take

Everything computes in bfloat16. A share counts the model's own multiplications (backward: twice the forward ones, none
for what is computed again) against the best rate of an 8192 x 8192 matrix product that either library reached.
Tokens lie on the card, but for the rows "fit", where Keras's `fit` brings every batch from the host's memory. PyTorch
runs torch.compile and scaled-dot-product attention; it needs PyTorch and Transformers, on which the rest does not.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
from measuring import ROOT, seconds_of

from basics.artifacts import versions

FULL = dict(frames=8, tokens=729, dim=1152, heads=12)
TINY = dict(frames=2, tokens=9, dim=24, heads=2)
SIGLIP = dict(hidden_dim=1152, num_layers=27, num_heads=16, intermediate_dim=4304)
TINY_SIGLIP = dict(hidden_dim=24, num_layers=2, num_heads=2, intermediate_dim=48)
WHATS = ("stage 1", "stage 2", "encode")
STEPS, WARM_UP = 5, 2
PAPER = {"stage 1": (10, 1_600_000, "10 h"), "stage 2": (10, 10_000, "20 min")}  # epochs, clips, on 8 TPUv3 (Sec. S-2)

# ---------------------------------------------------------------- what is measured
# (side, what, batch, dropout, more), a side's in the order of their memory: JAX tells the peak of a process so far

PLAN = [
    *(("keras", "encode", batch, 0.0, "") for batch in (64, 256)),
    ("keras", "stage 1", 64, 0.0, "remat"),
    ("keras", "stage 1", 64, 0.0, ""),
    ("keras", "stage 2", 64, 0.0, ""),
    ("keras", "stage 1", 64, 0.0, "fit"),
    ("keras", "stage 1", 64, 0.1, ""),
    ("keras", "stage 1", 8, 0.0, ""),
    ("keras", "stage 1", 256, 0.0, ""),
    ("keras", "stage 1", 64, 0.1, "remat"),
    ("keras", "stage 1", 128, 0.0, ""),
    ("keras", "stage 1", 256, 0.0, "remat"),
    ("keras", "stage 1", 512, 0.0, "remat"),
    *(("pytorch", "stage 1", batch, 0.0, "") for batch in (8, 64, 128, 256)),
    *(("pytorch", "stage 1", batch, 0.1, "") for batch in (8, 64)),
    *(("pytorch", "encode", batch, 0.0, "") for batch in (64, 256)),
]


def multiplications(what, sizes, siglip):
    """Multiply-adds x 2 of a clip (of a frame, encoding), forward and, in training, backward."""
    frames, tokens, dim = sizes["frames"], sizes["tokens"], sizes["dim"]
    if what == "encode":
        block = 2 * tokens * (4 * dim**2 + 2 * dim * siglip["intermediate_dim"]) + 4 * tokens**2 * dim
        return siglip["num_layers"] * block + 2 * tokens * 3 * 14**2 * dim

    def block(count, length):  # of `count` sequences
        return count * (24 * length * dim**2 + 4 * length**2 * dim)

    return 3 * (block(frames, tokens) + 5 * block(1, frames))


# ---------------------------------------------------------------- Keras on JAX


def keras_peak(size):
    import jax
    import jax.numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = timed(lambda: product(matrix, matrix).block_until_ready(), repeats=10)
    return 2 * size**3 / seconds


def keras_model(what, dropout, more, sizes):
    from common import SAGA, build_saga, hard_negative_loss, keras
    from training.devices import fuse_attention
    from training.remat import RematSAGA

    keras.utils.clear_session()
    classes = 2 if what == "stage 1" else 20
    kind = RematSAGA if more == "remat" else SAGA
    model = build_saga(classes, **sizes, dropout=dropout, dtype="mixed_bfloat16", kind=kind)
    fuse_attention(model)
    losses, weights = {"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}, {"logits": 1.0}
    if what == "stage 2":
        losses, weights = losses | {"embedding": hard_negative_loss}, {"logits": 0.5, "embedding": 0.5}
    model.compile(keras.optimizers.AdamW(1e-5, weight_decay=0.004), losses, loss_weights=weights)
    return model, classes


def keras_step(what, batch, dropout, more, sizes):
    """Seconds of a training step."""
    import jax

    from common import OUTPUTS, keras

    model, classes = keras_model(what, dropout, more, sizes)
    tokens = random_tokens(batch, sizes)
    labels = dict.fromkeys(OUTPUTS, np.arange(batch, dtype="int32") % classes)
    if more == "fit":

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return STEPS

            def __getitem__(self, step):
                return tokens, labels

        model.fit(Batches(), verbose=0)
        started = time.perf_counter()
        model.fit(Batches(), verbose=0)
        return (time.perf_counter() - started) / STEPS
    tokens, labels = jax.device_put((tokens, labels))
    return timed(lambda: model.train_on_batch(tokens, labels))


def keras_encode(batch, siglip, size):
    """Seconds of encoding frames."""
    import jax

    from common import keras, keras_hub
    from tokens.pretrained import siglip_tokens

    keras.utils.clear_session()
    policy = keras.dtype_policies.get("bfloat16")
    vision = keras_hub.models.SigLIPVisionEncoder(14, image_shape=(size, size, 3), dtype=policy, **siglip)
    model, _ = siglip_tokens(types.SimpleNamespace(vision_encoder=vision, dtype_policy=policy), None)
    images = jax.device_put(np.random.default_rng(0).random((batch, *model.input_shape[1:]), np.float32))
    states = model.trainable_variables, model.non_trainable_variables
    states = [[variable.value for variable in part] for part in states]

    @jax.jit
    def encode(weights, state, images):
        return model.stateless_call(weights, state, images, training=False)[0]

    return timed(lambda: encode(*states, images).block_until_ready())


def keras_memory():
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 2**30


# ---------------------------------------------------------------- PyTorch


def torch_device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_wait():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_peak(size):
    import torch

    matrix = torch.randn(size, size, device=torch_device(), dtype=torch.bfloat16)
    return 2 * size**3 / timed(lambda: (matrix @ matrix, torch_wait()), repeats=10)


def torch_step(what, batch, dropout, more, sizes):
    import torch
    from torch_saga import TorchSAGA

    torch._dynamo.reset()
    model = TorchSAGA(2, **sizes, dropout=dropout).to(torch_device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, weight_decay=0.004)
    forward = torch.compile(model)
    tokens = torch.from_numpy(random_tokens(batch, sizes)).to(torch_device())
    labels = torch.arange(batch, device=torch_device()) % 2

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch_device().type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(tokens.bfloat16()), labels)
        loss.backward()
        optimizer.step()
        torch_wait()

    return timed(step)


def torch_encode(batch, siglip, size):
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch._dynamo.reset()
    names = dict(hidden_dim="hidden_size", num_layers="num_hidden_layers", num_heads="num_attention_heads")
    config = {names.get(key, "intermediate_size"): value for key, value in siglip.items()}
    config = SiglipVisionConfig(image_size=size, patch_size=14, vision_use_head=False, **config)
    model = torch.compile(SiglipVisionModel(config).to(torch_device(), torch.bfloat16).eval())
    images = torch.rand(batch, 3, size, size, device=torch_device(), dtype=torch.bfloat16)

    def encode():
        with torch.inference_mode():
            model(images)
        torch_wait()

    return timed(encode)


def torch_memory():
    import torch

    if not torch.cuda.is_available():
        return 0
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


# ---------------------------------------------------------------- running


def random_tokens(batch, sizes):
    shape = (batch, sizes["frames"], sizes["tokens"], sizes["dim"])
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)


def timed(call, repeats=STEPS):
    return seconds_of(call, repeats, WARM_UP)


SIDES = {
    "keras": (keras_peak, keras_step, keras_encode, keras_memory),
    "pytorch": (torch_peak, torch_step, torch_encode, torch_memory),
}


def measure_side(side, whats, tiny, path):
    """Measure a side's rows in this process, those that run out of memory too, and write each at once."""
    peak_of, step, encode, memory = SIDES[side]
    sizes, siglip = (TINY, TINY_SIGLIP) if tiny else (FULL, SIGLIP)
    peak = peak_of(256 if tiny else 8192)
    with open(path, "a") as file:
        for _, what, batch, dropout, more in (row for row in PLAN if row[0] == side and row[1] in whats):
            started = time.perf_counter()
            row = dict(side=side, what=what, batch=batch, dropout=dropout, more=more, peak=peak)
            try:
                if what == "encode":
                    seconds = encode(batch, siglip, 42 if tiny else 378)
                else:
                    seconds = step(what, batch, dropout, more, sizes)
                done = multiplications(what, sizes, siglip) * batch / seconds
                row |= dict(seconds=seconds, rate=batch / seconds, done=done)
            except Exception as error:
                row["error"] = "out of memory" if "memory" in str(error).lower() else str(error).split("\n")[0]
            row |= dict(memory=memory(), whole=time.perf_counter() - started)
            print(json.dumps(row), flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()


def machine(tiny):
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card = "no NVIDIA GPU"
    found = versions("jax", "keras", "keras_hub", "torch", "transformers")
    return {"card": card, "date": str(datetime.date.today()), "versions": found, "tiny": tiny}


def render(found):
    """The Markdown of results/gpu.json."""
    about, rows = found["machine"], found["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"# One GPU: {about['card']}", "", f"{about['date']}; {versions}; bfloat16, random tokens and weights."]
    peaks = {side: max((row["peak"] for row in rows if row["side"] == side), default=0) for side in SIDES}
    lines += ["", f"Matrix products: {', '.join(f'{side} {peak / 1e12:.0f} TFLOP/s' for side, peak in peaks.items())}."]
    lines += ["", *found.get("notes", []), ""]
    lines += ["| what | batch | dropout | | Keras on JAX | of peak | GiB | PyTorch | of peak | GiB | ratio |"]
    lines += ["|---" * 11 + "|"]
    sides = [{key_of(row): row for row in rows if row["side"] == side} for side in SIDES]
    for key in dict.fromkeys(key_of(row) for row in rows):
        ours, theirs = (side.get(key, {}) for side in sides)
        ratio = f"{ours['rate'] / theirs['rate']:.2f}" if "rate" in ours and "rate" in theirs else ""
        cells = [cell for row in (ours, theirs) for cell in cells_of(row, max(peaks.values()))]
        lines.append(f"| {' | '.join([*map(str, key), *cells, ratio])} |")
    lines += ["", "Clips a second (frames, encoding) and (seconds a step). GiB of Keras: the peak so far.", ""]
    for what, (epochs, clips, theirs) in PAPER.items():
        rate = max((row.get("rate", 0) for row in rows if row["side"] == "keras" and row["what"] == what), default=0)
        if rate:
            hours = f"{epochs * clips / rate / 3600:.2f} h"
            lines += [f"- The paper's {what}, {epochs} epochs of {clips:,} clips, would take {hours} at the best rate"]
            lines += [f"  above, a window per clip and no waiting for data; 8 TPUv3 chips took about {theirs}."]
    return "\n".join(lines) + "\n"


def key_of(row):
    return row["what"], row["batch"], row["dropout"], row["more"]


def cells_of(row, peak):
    if not row:
        return ["", "", ""]
    if "error" in row:
        return [row["error"], "", ""]
    return [f"{row['rate']:.1f} ({row['seconds']:.3f})", f"{100 * row['done'] / peak:.0f}%", f"{row['memory']:.1f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="measure these alone")
    parser.add_argument("--what", nargs="+", default=WHATS, choices=WHATS, help="measure these alone")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of gpu.json and gpu.md")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does it run?")
    parser.add_argument("--measure", metavar="FILE", help="measure the sides in this process alone")
    args = parser.parse_args()
    if args.measure:
        for side in args.sides:
            measure_side(side, args.what, args.tiny, args.measure)
        return
    lines = args.out / "gpu.jsonl"
    lines.unlink(missing_ok=True)
    for side in args.sides:
        command = [sys.executable, __file__, "--sides", side, "--what", *args.what, "--measure", lines]
        command += ["--tiny"] * args.tiny
        subprocess.run(command, env=os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}, check=False)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    found = {"machine": machine(args.tiny), "rows": rows}
    (args.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "gpu.md").write_text(render(found))
    lines.unlink()
    print(render(found))


if __name__ == "__main__":
    main()
