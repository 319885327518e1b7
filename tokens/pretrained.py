"""The choice of an encoder by name, and the pretrained ones: SigLIP, DINOv2 and CLIP from KerasHub presets, MobileNet
from Keras Applications.

    encoder = build_encoder("dct", pool=2)                 block-DCT statistics, without Keras
    encoder = load_preset("siglip")                        729 x 1152 per frame (SAGA, Sec. S-2)
    encoder = load_preset("clip", layer="pooled")          1 x 1024; "projection" is the 1 x 768 image embedding
    encoder = load_preset("hf://keras/...", dtype="bfloat16")
    encoder = load_mobilenet(weights="mobilenet_1_0_224_tf_no_top.h5")

Frames are prepared as each model was trained (preparation.py), with NumPy on the threads that decode. Keras is imported
where it is used, since 01 with `dct` does without.
"""

import contextlib
import functools
import hashlib
import inspect
import os
import re
from pathlib import Path

import cv2
import numpy as np

from basics.running import InputError, reason
from tokens.encoders import ENCODERS, pool_tokens, pooled_tokens
from tokens.preparation import KERNELS, Preparation

# ---------------------------------------------------------------- a model as an encoder


class Pretrained:
    """An encoder (see encoders.py) made of a Keras model: images (N, size, size, 3) -> tokens (N, T, D)."""

    def __init__(self, name, model, grid: int, prepare: Preparation, pool=1, **recipe):
        self.name, self.model, self.prepare, self.pool = name, model, prepare, pool
        self.tokens, self.dim = pooled_tokens(grid, pool), model.output_shape[-1]
        self.recipe = recipe | {"prepare": prepare._asdict(), "weights_sha256": weights_digest(model)}

    def encode(self, prepared):
        tokens = self.model.predict_on_batch(np.stack(prepared))
        tokens = np.asarray(tokens).astype(np.float32)
        return tokens if self.pool == 1 else pool_tokens(tokens, self.pool)


def weights_digest(model) -> str:
    """One name for the same weights, wherever they came from and on every backend."""
    import keras

    digest = hashlib.sha256()
    for weight in model.weights:
        derived = weight.name == "interpolated_position_embeddings"  # its last bits depend on the processor
        if keras.backend.is_float_dtype(weight.dtype) and not derived:  # position ids are int32 or int64
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).view(np.uint8).data)
    return digest.hexdigest()


# ---------------------------------------------------------------- KerasHub: SigLIP, DINOv2, CLIP

PRESETS = {"siglip": "siglip_so400m_patch14_384", "dinov2": "dinov2_large", "clip": "clip_vit_large_patch14"}
LAYERS = {"siglip": (), "dinov2": (), "clip": ("projection", "pooled")}  # what --layer chooses from, default first
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DINOV2_SIZE = 378  # 27 x 27 patches, as many as SigLIP's; its position embeddings are interpolated from 37 x 37
os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # without a network it warns of each of its retries


def backbones() -> dict:
    """KerasHub's class of each family."""
    from keras_hub import models

    return {"siglip": models.SigLIPBackbone, "dinov2": models.DINOV2Backbone, "clip": models.CLIPBackbone}


def is_preset(name: str) -> bool:
    """Whether KerasHub may know a preset: its name, a handle (hf://, kaggle://), or a local folder."""
    return "://" in name or Path(name).is_dir() or any(name in backbone.presets for backbone in backbones().values())


def load_preset(name: str, layer=None, dtype="float32", pool=1) -> Pretrained:
    """A SigLIP, DINOv2 or CLIP encoder by short name, KerasHub preset, handle or local folder.

    Raises InputError, saying which files go where, when the preset cannot be downloaded or read.
    """
    import keras_hub

    preset = PRESETS.get(name, name)
    if not is_preset(preset):
        raise InputError(
            f"unknown encoder {name!r}; choose one of {', '.join(ENCODERS)}, or a KerasHub preset of SigLIP, DINOv2 or"
            " CLIP: its name, hf:// or kaggle:// handle, or a folder"
        )
    with plain_errors(preset):
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
        family = family_of(converter)
    check_layer(family, layer, LAYERS[family])  # before the weights are downloaded
    layer = layer or next(iter(LAYERS[family]), None)
    with plain_errors(preset):
        sizes = {"image_shape": (DINOV2_SIZE, DINOV2_SIZE, 3)} if family == "dinov2" else {}
        backbone = backbones()[family].from_preset(preset, dtype=dtype, **sizes)
        model, grid = TOKENS[family](backbone, layer)
        prepare = preparation(converter, model.input_shape[1])
    return Pretrained(family, model, grid, prepare, pool, preset=preset, layer=layer, encoder_dtype=dtype)


@contextlib.contextmanager
def plain_errors(preset):
    """Turn what KerasHub, a hub's client or HDF5 raises into an InputError of one line that says what to do."""
    try:
        yield
    except Exception as error:
        remove_empty_folders(preset)
        raise InputError(f"{preset} cannot be loaded ({reason(error)}); {remedy(preset)}") from error


def remove_empty_folders(preset):
    """Undo what kagglehub does before it knows whether it can download: make a folder for the model."""
    from kagglehub.config import get_cache_folder

    handle, cache = kaggle_handle(preset), Path(get_cache_folder())
    if handle.startswith("kaggle://") and ".." not in handle:
        folder = cache / "models" / handle.removeprefix("kaggle://").strip("/")
        with contextlib.suppress(OSError):  # there is none, or it holds files
            while folder != cache:
                folder.rmdir()
                folder = folder.parent


def family_of(converter):
    """The family that an image converter belongs to; a Transformers checkpoint without one can only be DINOv2."""
    if converter is None:
        return "dinov2"
    for family, backbone in backbones().items():
        if converter.backbone_cls is backbone:
            return family
    raise InputError(f"{converter.backbone_cls.__name__} is none of {', '.join(backbones())}")


def preparation(converter, size) -> Preparation:
    if converter is None:  # DINOv2's published preparation
        scale, offset = 1 / 255 / IMAGENET_STD, -IMAGENET_MEAN / IMAGENET_STD
        return Preparation(size, scale.tolist(), offset.tolist(), True, "bicubic")
    if converter.interpolation not in KERNELS or converter.pad_to_aspect_ratio:
        raise InputError(f"a preset that resizes by {converter.interpolation} or pads its images is not supported")
    scale = np.broadcast_to(1.0 if converter.scale is None else converter.scale, 3).tolist()
    offset = np.broadcast_to(0.0 if converter.offset is None else converter.offset, 3).tolist()
    return Preparation(size, scale, offset, converter.crop_to_aspect_ratio, converter.interpolation)


def in_dtype(vision, policy):
    """A vision encoder in a dtype: a preset of images and text loads it in the dtype that it was saved in."""
    copy = type(vision).from_config(vision.get_config() | {"dtype": policy})
    copy.set_weights(vision.get_weights())
    return copy


def siglip_tokens(backbone, layer):
    """Images -> tokens after the vision encoder's last LayerNorm, before its pooling head."""
    import keras

    vision = in_dtype(backbone.vision_encoder, backbone.dtype_policy)
    grid = vision.image_shape[0] // vision.patch_size
    size = grid * vision.patch_size  # 378: of 384, no patch sees the last 6
    images = keras.Input((size, size, 3))
    x = vision.embedding(images)
    for block in vision.encoder_layers:
        x = block(x)
    return keras.Model(images, vision.post_layer_norm(x)), grid


def dinov2_tokens(backbone, layer):
    """Images -> patch tokens after the last LayerNorm, without class and register tokens."""
    import keras

    interpolate_positions(backbone.embeddings)
    patches = backbone.output[:, 1 + backbone.num_register_tokens :]
    return keras.Model(backbone.inputs[0], patches), DINOV2_SIZE // backbone.patch_size


def interpolate_positions(embeddings):
    """Resize position embeddings as PyTorch does: bicubic with a = -3/4, OpenCV's too, where KerasHub has -1/2.

    The published models with registers antialias, which has a = -1/2 in both: KerasHub's are kept.
    """
    import keras

    if embeddings.antialias_in_interpolation:
        return
    learned = np.float32(keras.ops.convert_to_numpy(embeddings.position_embeddings))[0]  # (1 + positions, D)
    old, new = (
        shape[0] // embeddings.patch_size for shape in (embeddings.position_embedding_shape, embeddings.image_shape)
    )
    grid = learned[1:].reshape(old, old, -1)
    resized = [cv2.resize(plane, (new, new), interpolation=cv2.INTER_CUBIC) for plane in np.moveaxis(grid, -1, 0)]
    patches = np.stack(resized, axis=-1).reshape(new * new, -1)
    embeddings.interpolated_position_embeddings.assign(np.concatenate([learned[:1], patches])[None])


def clip_tokens(backbone, layer):
    """Images -> one token: the projected image embedding, or the pooled class token before the projection."""
    import keras

    vision = in_dtype(backbone.vision_encoder, backbone.dtype_policy)
    images = keras.Input(vision.image_shape)
    x = backbone.vision_pooler(vision({"images": images}))  # (N, width)
    if layer != "pooled":
        x = backbone.vision_projection(x)
    return keras.Model(images, x[:, None]), 1


TOKENS = {"siglip": siglip_tokens, "dinov2": dinov2_tokens, "clip": clip_tokens}


def check_layer(encoder, layer, choices):
    if layer is not None and layer not in choices:
        known = f"choose one of {', '.join(choices)}" if choices else "it has one output"
        raise InputError(f"--layer {layer}: {encoder} has no such layer; {known}")


def remedy(preset):
    """What to fetch, from where, and how to pass it."""
    if Path(preset).is_dir():
        return (
            "a preset folder holds config.json, image_converter.json and model.weights.h5 of KerasHub's save_to_preset"
        )
    place = kaggle_handle(preset).replace("kaggle://", "https://www.kaggle.com/models/")
    place = place.replace("hf://", "https://huggingface.co/")
    files = "config.json, image_converter.json and model.weights.h5"
    return f"fetch {files} from {place} into a folder and pass --encoder FOLDER"


def kaggle_handle(preset):
    """Where a built-in preset is on Kaggle; any other preset as it is."""
    for backbone in backbones().values():
        preset = backbone.presets.get(preset, {}).get("kaggle_handle", preset)
    return preset


# ---------------------------------------------------------------- Keras Applications: MobileNet

MOBILENET_FILE = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/mobilenet_1_0_224_tf_no_top.h5"
MOBILENET_LAYERS = tuple(f"conv_pw_{block}" for block in range(1, 14))
MOBILENET_LAYER = "conv_pw_5"


def load_mobilenet(layer=None, weights=None, dtype="float32", pool=1) -> Pretrained:
    """MobileNet v1 (ImageNet, 224 px), tokens of an inner 1 x 1 convolution, standardised per channel as on ImageNet.

    `weights` is the file that Keras downloads, or one saved from a MobileNet cut after any block that the layer needs.
    """
    import keras

    layer = layer or MOBILENET_LAYER
    check_layer("mobilenet", layer, MOBILENET_LAYERS)
    try:
        blocks = saved_blocks(weights) if weights else len(MOBILENET_LAYERS)
        if layer not in MOBILENET_LAYERS[:blocks]:
            raise InputError(f"it holds {blocks} of MobileNet's 13 blocks, too few for --layer {layer}")
        model = mobilenet(blocks, dtype, None if weights else "imagenet")
        if weights:
            model.load_weights(weights)
        x = standardised(model.get_layer(f"{layer}_bn"))
    except Exception as error:  # of the download, HDF5, Keras
        what = f"{weights} cannot be read" if weights else "MobileNet's weights cannot be downloaded"
        raise InputError(f"{what} ({reason(error)}); fetch {MOBILENET_FILE} and pass --encoder-weights FILE") from error
    model = keras.Model(model.input, keras.layers.Reshape((-1, x.shape[-1]))(x))
    prepare = Preparation(224, [1 / 127.5] * 3, [-1.0] * 3, crop=True, interpolation="bicubic")
    return Pretrained("mobilenet", model, x.shape[1], prepare, pool, layer=layer, encoder_dtype=dtype)


def mobilenet(blocks, dtype, weights):
    """The network up to a block's last ReLU; Keras Applications takes its dtype from the global policy alone."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=weights)
    finally:
        keras.config.set_dtype_policy(policy)
    return keras.Model(network.input, network.get_layer(f"conv_pw_{blocks}_relu").output)


def standardised(norm):
    """The input of a batch normalisation standardised by its moving statistics, without the learned scale and shift.

    After them and the ReLU tokens are nearly the same in all clips (98% of the energy of mean tokens, 51% as they are
    here; conv_pw_3 on 328 real clips, equalized), and hard negative mining then pulls every embedding to one point.
    """
    import keras

    plain = keras.layers.BatchNormalization(center=False, scale=False, epsilon=norm.epsilon, dtype=norm.dtype_policy)
    x = plain(norm.input)
    plain.set_weights([norm.moving_mean, norm.moving_variance])
    return x


def saved_blocks(path) -> int:
    """How many of MobileNet's 13 blocks a weights file holds, in Keras 3's layout or the older one."""
    import h5py

    with h5py.File(path) as file:
        names = file.get("layers", file)
        return sum(bool(re.fullmatch(r"depthwise_conv2d(_\d+)?|conv_dw_\d+", name)) for name in names)


# ---------------------------------------------------------------- choosing an encoder

ENCODERS |= {"mobilenet": load_mobilenet} | {name: functools.partial(load_preset, name) for name in PRESETS}
FLAGS = {"pool": "--pool", "layer": "--layer", "weights": "--encoder-weights", "dtype": "--encoder-dtype"}


def maker_of(name: str):
    """The function or class that makes the encoder of a name."""
    make = ENCODERS.get(name, load_preset)
    return make.func if isinstance(make, functools.partial) else make


def build_encoder(name: str, pool: int = 1, layer=None, weights=None, dtype=None):
    """The encoder of this name in ENCODERS, or of a KerasHub preset of SigLIP, DINOv2 or CLIP by name, handle or
    folder.

    `pool` averages its token grid pool x pool; `layer` chooses among the outputs of clip and mobilenet; `weights` is a
    file for mobilenet; `dtype` (float32) is that of a pretrained model. Raises InputError naming the flag of an option
    that the encoder does not have.
    """
    if name != "dct":
        import basics.backend  # noqa: F401, before Keras
    make = ENCODERS.get(name) or functools.partial(load_preset, name)
    given = {"pool": pool, "layer": layer, "weights": weights, "dtype": dtype}
    given = {option: value for option, value in given.items() if value not in (None, 1)}
    if unknown := sorted(given.keys() - inspect.signature(make).parameters.keys()):
        raise InputError(f"{', '.join(FLAGS[option] for option in unknown)}: not for the encoder {name}; leave it out")
    return make(**given)
