"""SigLIP-So400m/14 tokens (729 x 1152) of a clip's 8 frames: ours, and Hugging Face's transformers on PyTorch.

Both sides have the same random weights, drawn once into a preset of KerasHub and a checkpoint of transformers (4 GB of
disk for the time of the run), and the same prepared frames in one batch. Their tokens are compared. The share of
the peak is of the fastest matrix product that NumPy, PyTorch or TensorFlow reached here, in the same run and dtype.
"""

import tempfile
from functools import partial

import numpy as np
from measuring import SideError, alternated, compared, run_side, seconds_of, side

FULL = dict(size=384, width=1152, blocks=27, heads=16, mlp=4304, frames=8, repeats=3, square=4096)
TINY = dict(size=56, width=48, blocks=2, heads=2, mlp=96, frames=2, repeats=1, square=256)
PATCH = 14
DTYPES = ("float32", "bfloat16", "mixed_bfloat16")
PEAK_SHARE = 0.75
LIBRARIES = ("numpy", "pytorch", "tensorflow", "tensorflow_xla")


def cases(args):
    return [("", partial(measure, TINY if args.tiny else FULL))]


def measure(sizes):
    with tempfile.TemporaryDirectory() as folder:
        side(__file__, "write_models", folder=folder, sizes=sizes)
        found, peaks = {}, {}
        for dtype in DTYPES:
            product = dtype.removeprefix("mixed_")
            if product not in peaks:
                peaks[product] = peak(product, sizes)
            run = {
                name: partial(side, __file__, name, folder=folder, dtype=dtype, sizes=sizes)
                for name in ("ours", "transformers")
            }
            found[dtype] = alternated(1, **run)
        rows = []
        for dtype in DTYPES:
            ours, theirs = found[dtype]["ours"], found[dtype]["transformers"]
            what = f"tokens of {sizes['frames']} frames, {dtype}"
            apart = side(__file__, "difference", folder=folder, dtype=dtype)["note"]
            way = "autocast" if dtype.startswith("mixed") else dtype
            rows.append(compared(what, f"PyTorch, transformers, {way}", ours, theirs, note=apart))
            rows.append(of_peak(what, ours, peaks[dtype.removeprefix("mixed_")], sizes))
        for dtype in DTYPES[1:]:
            rows.append(
                compared(
                    f"tokens, {dtype}", "ours in float32", found[dtype]["ours"], found["float32"]["ours"], aim=None
                )
            )
        return rows


def peak(dtype, sizes):
    """The fastest product of this dtype, in TFLOP/s, and whose it is."""
    fastest = {"rate": 0.0, "library": ""}
    for library in LIBRARIES:
        try:
            found = side(__file__, "product", library=library, dtype=dtype, sizes=sizes)
        except SideError:
            continue
        fastest = max(fastest, found | {"library": library}, key=lambda one: one["rate"])
    return fastest


def of_peak(what, ours, fastest, sizes):
    measured = ours if isinstance(ours, SideError) else {"rate": operations(sizes) / ours["seconds"] / 1e12}
    note = f"the peak is {fastest['library']}'s; a product counts 2 m n k, everything else 0"
    options = dict(unit="TFLOP/s", key="rate", aim=PEAK_SHARE, higher=True, note=note)
    return compared(what, "peak of matrix products here", measured, fastest, **options)


def operations(sizes) -> float:
    """Floating-point operations of the matrix products of one batch of frames."""
    tokens, width = (sizes["size"] // PATCH) ** 2, sizes["width"]
    dense = 4 * width**2 + 2 * width * sizes["mlp"]
    block = 2 * tokens * dense + 4 * tokens**2 * width
    return sizes["frames"] * (sizes["blocks"] * block + 2 * tokens * 3 * PATCH**2 * width)


# ---------------------------------------------------------------- models and frames for both sides


def write_models(folder, sizes):
    import torch
    import transformers
    from parity import TEXT, copy_siglip

    from common import keras_hub

    torch.manual_seed(0)
    shape = dict(hidden_size=sizes["width"], num_hidden_layers=sizes["blocks"], num_attention_heads=sizes["heads"])
    shape |= dict(intermediate_size=sizes["mlp"], image_size=sizes["size"], patch_size=PATCH)
    reference = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**shape)).eval().requires_grad_(False)
    reference.save_pretrained(f"{folder}/transformers")
    vision = keras_hub.models.SigLIPVisionEncoder(
        PATCH, sizes["width"], sizes["blocks"], sizes["heads"], sizes["mlp"], image_shape=(sizes["size"],) * 2 + (3,)
    )
    copy_siglip(vision, reference)
    text = keras_hub.models.SigLIPTextEncoder(**TEXT | dict(hidden_dim=sizes["width"], embedding_dim=sizes["width"]))
    keras_hub.models.SigLIPBackbone(vision, text).save_to_preset(f"{folder}/preset")
    stretch = dict(scale=1 / 127.5, offset=-1.0, interpolation="bicubic", crop_to_aspect_ratio=False)
    keras_hub.layers.SigLIPImageConverter((sizes["size"],) * 2, **stretch).save_to_preset(f"{folder}/preset")
    side_pixels = sizes["size"] // PATCH * PATCH  # what the patches cover
    frames = np.random.default_rng(0).uniform(-1, 1, (sizes["frames"], side_pixels, side_pixels, 3))
    np.save(f"{folder}/frames.npy", frames.astype(np.float32))
    return {}


def difference(folder, dtype):
    try:
        ours, theirs, exact = (
            np.load(f"{folder}/{name}.npy")
            for name in (f"ours-{dtype}", f"transformers-{dtype}", "transformers-float32")
        )
    except FileNotFoundError:
        return {"note": ""}
    apart, theirs_apart = np.sqrt([np.mean((ours - other) ** 2) for other in (theirs, exact)]) / exact.std()
    note = f"tokens {apart:.1e} apart (RMS, of their deviation)"
    return {"note": note if dtype == "float32" else f"{note}, {theirs_apart:.1e} from float32's"}


# ---------------------------------------------------------------- the sides


def ours(folder, dtype, sizes):
    from tokens.pretrained import build_encoder

    encoder = build_encoder(f"{folder}/preset", dtype=dtype)
    frames, found = list(np.load(f"{folder}/frames.npy")), []
    seconds = seconds_of(lambda: found.append(encoder.encode(frames)), sizes["repeats"])
    np.save(f"{folder}/ours-{dtype}.npy", found[-1])
    return {"seconds": seconds}


def transformers(folder, dtype, sizes):
    import torch
    import transformers

    mixed = dtype.startswith("mixed")
    model = transformers.SiglipVisionModel.from_pretrained(
        f"{folder}/transformers", dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32
    ).eval()
    frames = torch.from_numpy(np.load(f"{folder}/frames.npy").transpose(0, 3, 1, 2).copy()).to(model.dtype)
    found = []

    def work():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append(model(frames).last_hidden_state.float().numpy())

    seconds = seconds_of(work, sizes["repeats"])
    np.save(f"{folder}/transformers-{dtype}.npy", found[-1])
    return {"seconds": seconds}


def product(library, dtype, sizes):
    """The best rate of a square product and of the model's widest one, in TFLOP/s."""
    rows, square = sizes["frames"] * (sizes["size"] // PATCH) ** 2, sizes["square"]
    shapes = [(square, square, square), (rows, sizes["width"], sizes["mlp"])]
    return {"rate": max(rate(library, dtype, *shape) for shape in shapes) / 1e12}


def rate(library, dtype, m, k, n):
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n)))
    if library == "numpy":
        if dtype != "float32":
            raise ValueError("NumPy has no bfloat16")
        seconds = seconds_of(lambda: a @ b, 5)
    elif library == "pytorch":
        import torch

        a, b = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in (a, b))
        seconds = seconds_of(lambda: a @ b, 5)
    else:
        import tensorflow as tf

        a, b = (tf.cast(x, dtype) for x in (a, b))
        multiply = tf.function(tf.matmul, jit_compile=library == "tensorflow_xla")
        seconds = seconds_of(lambda: multiply(a, b).numpy(), 5)
    return 2.0 * m * k * n / seconds


if __name__ == "__main__":
    run_side(globals())
