"""Small KerasHub presets with random weights, saved as `save_to_preset` saves the real ones."""

from pathlib import Path

import numpy as np

from common import keras, keras_hub

WIDTH, BLOCKS, HEADS, MLP = 32, 2, 2, 64
CLIP_SCALE, CLIP_OFFSET = [0.0146, 0.0150, 0.0142], [-1.79, -1.75, -1.48]  # CLIP's mean and standard deviation, rounded


def tiny_presets(folder) -> dict[str, Path]:
    """Write a SigLIP (48 px, of which 42 are used), a DINOv2 with two registers and a CLIP; returns their folders."""
    keras.utils.set_random_seed(1)
    models, layers = keras_hub.models, keras_hub.layers
    sizes = dict(num_layers=BLOCKS, num_heads=HEADS, intermediate_dim=MLP, hidden_dim=WIDTH)
    text = sizes | dict(vocabulary_size=64, embedding_dim=WIDTH, max_sequence_length=8)
    image = sizes | dict(patch_size=14)
    siglip = models.SigLIPBackbone(
        models.SigLIPVisionEncoder(**image, image_shape=(48, 48, 3)), models.SigLIPTextEncoder(**text)
    )
    clip = models.CLIPBackbone(
        models.CLIPVisionEncoder(**image, image_shape=(56, 56, 3)), models.CLIPTextEncoder(**text), projection_dim=24
    )
    clip.vision_encoder.embedding.position_ids.assign(np.arange(17)[None])  # KerasHub leaves them at zero
    dinov2 = models.DINOV2Backbone(**image, num_register_tokens=2, image_shape=(518, 518, 3))
    stretch = dict(scale=1 / 127.5, offset=-1.0, interpolation="bicubic", antialias=True, crop_to_aspect_ratio=False)
    crop = dict(scale=CLIP_SCALE, offset=CLIP_OFFSET, interpolation="bicubic")
    saved = {
        "siglip": (siglip, layers.SigLIPImageConverter(image_size=(48, 48), **stretch)),
        "dinov2": (dinov2, layers.DINOV2ImageConverter(image_size=(518, 518), **crop)),
        "clip": (clip, layers.CLIPImageConverter(image_size=(56, 56), **crop)),
    }
    for name, (backbone, converter) in saved.items():
        for variable in backbone.weights:  # biases, LayerNorms, class tokens too: zeros and ones would hide mistakes
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign_add(keras.random.normal(variable.shape, stddev=0.1))
        backbone.save_to_preset(str(Path(folder) / name))
        converter.save_to_preset(str(Path(folder) / name))
    return {name: Path(folder) / name for name in saved}
