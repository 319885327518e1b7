"""A training step of stage 1 at full size, batch 4: tokens (4, 8, 729, 1152), 95,643,650 parameters, AdamW.

Ours is the model of common.py through train_on_batch, on TensorFlow and on JAX, with and without --remat; theirs
the same model of nn.TransformerEncoderLayer, with autocast for bfloat16 and the fused AdamW. Dropout 0.1 takes Keras
off its fused attention path, so dropout 0 is measured too. Each case needs up to 14 GB of memory. XLA on TensorFlow
takes four times as long here as without it, and is in the first case alone.
"""

from functools import partial

import numpy as np
from measuring import SideError, alternated, compared, run_side, seconds_of, side

FULL = dict(batch=4, frames=8, tokens=729, dim=1152, heads=12, temporal_blocks=5)
TINY = FULL | dict(batch=2, tokens=4, dim=48)
PARAMETERS = 95_643_650  # at full size, for two classes (Sec. S-2)
SIDES = {  # backend and what else `ours` takes
    "TensorFlow": ("tensorflow", dict(xla=False, remat=False)),
    "TensorFlow, --remat": ("tensorflow", dict(xla=False, remat=True)),
    "JAX": ("jax", dict(xla=True, remat=False)),
    "JAX, --remat": ("jax", dict(xla=True, remat=True)),
    "TensorFlow, XLA": ("tensorflow", dict(xla=True, remat=False)),
}


def cases(args):
    for dropout in (0.1, 0.0):
        for dtype in ("float32", "bfloat16"):
            yield f"{dtype} dropout {dropout:g}", partial(measure, dtype, dropout, TINY if args.tiny else FULL)


def measure(dtype, dropout, sizes):
    case = dict(dtype=dtype, dropout=dropout, sizes=sizes)
    sides = {"PyTorch": partial(side, __file__, "pytorch", **case)}
    for name, (backend, how) in SIDES.items():
        if "XLA" not in name or (dtype, dropout) == ("float32", 0.1):
            sides[name] = partial(side, __file__, "ours", {"KERAS_BACKEND": backend}, **case, **how)
    found = alternated(1, **sides)
    theirs = found.pop("PyTorch")
    # in bfloat16 to be ahead, not only not behind
    aim = 1.0 if dtype == "float32" else 1.01
    rows = []
    for name, ours in found.items():
        what = f"step of {sizes['batch']} windows, {dtype}, dropout {dropout:g}, {name}"
        note = parameters(ours, theirs, sizes)
        rows.append(compared(what, "PyTorch, nn.TransformerEncoderLayer", ours, theirs, aim=aim, note=note))
        rows.append(compared(f"{what}: memory", "PyTorch", ours, theirs, "GiB", "memory"))
    return rows


def parameters(ours, theirs, sizes):
    counts = {one["parameters"] for one in (ours, theirs) if not isinstance(one, SideError)}
    wanted = {PARAMETERS} if sizes == FULL else counts
    return f"{max(counts, default=0):,} parameters" if len(counts) < 2 and counts <= wanted else f"OTHER SIZES {counts}"


# ---------------------------------------------------------------- the sides

STEPS = 3


def data(sizes):
    random = np.random.default_rng(0)
    shape = (sizes["batch"], sizes["frames"], sizes["tokens"], sizes["dim"])
    return random.standard_normal(shape, np.float32).astype(np.float16), np.arange(sizes["batch"]) % 2


def ours(dtype, dropout, sizes, xla, remat):
    from common import OUTPUTS, SAGA, build_saga, keras
    from training.remat import RematSAGA

    keras.utils.set_random_seed(0)
    tokens, labels = data(sizes)
    policy = "float32" if dtype == "float32" else "mixed_bfloat16"
    model_sizes = {key: sizes[key] for key in sizes if key != "batch"}
    model = build_saga(2, **model_sizes, dropout=dropout, dtype=policy, kind=RematSAGA if remat else SAGA)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.AdamW(1e-5, weight_decay=0.004)
    model.compile(optimizer, {"logits": cross_entropy}, jit_compile=xla)
    targets = dict.fromkeys(OUTPUTS, labels)
    seconds = seconds_of(lambda: model.train_on_batch(tokens, targets), STEPS, warm_up=2)
    return {"seconds": seconds, "parameters": model.count_params()}


def pytorch(dtype, dropout, sizes):
    import torch
    from torch_saga import TorchSAGA

    torch.manual_seed(0)
    tokens, labels = map(torch.from_numpy, data(sizes))
    model = TorchSAGA(**{key: sizes[key] for key in sizes if key != "batch"}, dropout=dropout).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, weight_decay=0.004, fused=True)

    def work():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(tokens.float())
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    seconds = seconds_of(work, STEPS, warm_up=2)
    return {"seconds": seconds, "parameters": sum(weight.numel() for weight in model.parameters())}


if __name__ == "__main__":
    run_side(globals())
