"""Do the pretrained encoders give the tokens that Hugging Face's Transformers gives?  python tests/parity.py

Small models, the same random weights on both sides, the same prepared pixels. SigLIP and CLIP get their weights here
and travel through a preset folder; a DINOv2 is a Transformers checkpoint, which `build_encoder` opens as it is. The
preparation is compared too, without a verdict: Transformers rounds the grey levels that resizing gives and, where it
crops, the resized frame's longer side. SigLIP's is compared with both sizes that Transformers could resize to: what the
patches cover, and the model's nominal size, of which they then see the top left.
"""

import logging
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
import transformers
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from common import keras, keras_hub
from tokens import pretrained
from tokens.pretrained import build_encoder

TOLERANCE = 1e-4
WIDTH, BLOCKS, HEADS, MLP, PATCH, PROJECTION = 32, 3, 2, 128, 14, 24
SIGLIP_SIZE, CLIP_SIZE, DINOV2_SIZE = 48, 56, 518  # SigLIP's 3 x 3 patches reach to 42

models, layers = keras_hub.models, keras_hub.layers


def main():
    logging.getLogger("tensorflow").setLevel("ERROR")  # it advises against building many models
    transformers.utils.logging.disable_progress_bar()
    keras.utils.set_random_seed(1)
    frame, largest = test_frame(), {}
    with tempfile.TemporaryDirectory() as folder:
        for compare in (siglip, clip, dinov2, dinov2_with_registers):
            largest |= compare(Path(folder), frame)
    failed = [name for name, difference in largest.items() if not difference <= TOLERANCE]  # so that NaN fails
    if failed:
        sys.exit(f"parity.py: more than {TOLERANCE:.0e} away from Transformers' tokens: {', '.join(failed)}")


def test_frame():
    """An RGB frame (480, 640, 3) with something at every scale, whatever size it is shrunk to."""
    random = np.random.default_rng(1)
    waves = [cv2.resize(random.normal(0, 25, (3 * k, 4 * k, 3)), (640, 480)) for k in (2, 8, 32, 160)]
    return np.clip(128 + sum(waves), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- the four models


def siglip(folder, frame):
    config = transformers.SiglipVisionConfig(**transformers_sizes(SIGLIP_SIZE))
    reference = random_model(transformers.SiglipVisionModel, config)
    vision = models.SigLIPVisionEncoder(**keras_sizes(SIGLIP_SIZE))
    copy_siglip(vision, reference)

    backbone = models.SigLIPBackbone(vision, models.SigLIPTextEncoder(**TEXT))
    stretch = dict(scale=1 / 127.5, offset=-1.0, crop_to_aspect_ratio=False, **CONVERTER)
    converter = layers.SigLIPImageConverter(image_size=(SIGLIP_SIZE, SIGLIP_SIZE), **stretch)
    encoder = build_encoder(save_preset(folder / "siglip", backbone, converter))

    pixels = encoder.prepare(frame)
    for size in sorted({len(pixels), SIGLIP_SIZE}):
        processor = SiglipImageProcessorPil(size=dict(height=size, width=size))
        report_preparation(f"siglip {size} px", pixels, processor, frame)
    return report("siglip", encoder.encode([pixels]), run(reference, pixels).last_hidden_state)


def clip(folder, frame):
    config = transformers.CLIPVisionConfig(**transformers_sizes(CLIP_SIZE), projection_dim=PROJECTION)
    reference = random_model(transformers.CLIPVisionModelWithProjection, config)
    vision, source = models.CLIPVisionEncoder(**keras_sizes(CLIP_SIZE)), reference.vision_model
    backbone = models.CLIPBackbone(vision, models.CLIPTextEncoder(**TEXT), PROJECTION)
    vision.embedding.class_embedding.assign(source.embeddings.class_embedding.numpy())
    copy_weights(vision.embedding.patch_embedding, source.embeddings.patch_embedding)
    copy_weights(vision.embedding.position_embedding, source.embeddings.position_embedding)
    vision.embedding.position_ids.assign(np.arange(vision.embedding.num_positions)[None])
    copy_weights(vision.pre_layer_norm, source.pre_layrnorm)
    for block, other in zip(vision.encoder_layers, source.encoder.layers, strict=True):
        copy_block((block.layer_norm_1, block.attention, block.layer_norm_2, block.dense_1, block.dense_2), other)
    copy_weights(vision.layer_norm, source.post_layernorm)
    copy_weights(backbone.vision_projection, reference.visual_projection)

    mean, std = np.array(OPENAI_CLIP_MEAN), np.array(OPENAI_CLIP_STD)
    crop = dict(scale=(1 / 255 / std).tolist(), offset=(-mean / std).tolist(), crop_to_aspect_ratio=True, **CONVERTER)
    converter = layers.CLIPImageConverter(image_size=(CLIP_SIZE, CLIP_SIZE), **crop)
    preset = save_preset(folder / "clip", backbone, converter)
    projection, pooled = build_encoder(preset), build_encoder(preset, layer="pooled")

    pixels = projection.prepare(frame)
    cut = dict(size=dict(shortest_edge=CLIP_SIZE), crop_size=dict(height=CLIP_SIZE, width=CLIP_SIZE))
    report_preparation("clip", pixels, CLIPImageProcessorPil(**cut), frame)
    projected = report("clip", projection.encode([pixels]), run(reference, pixels).image_embeds[:, None])
    return projected | report("clip pooled", pooled.encode([pixels]), run(source, pixels).pooler_output[:, None])


def dinov2(folder, frame):
    config = transformers.Dinov2Config(**transformers_sizes(DINOV2_SIZE))
    reference = random_model(transformers.Dinov2Model, config)
    pixels = pretrained.preparation(None, pretrained.DINOV2_SIZE)(frame)
    cut = dict(size=dict(shortest_edge=len(pixels)), crop_size=dict(height=len(pixels), width=len(pixels)))
    imagenet = dict(image_mean=pretrained.IMAGENET_MEAN.tolist(), image_std=pretrained.IMAGENET_STD.tolist())
    report_preparation("dinov2", pixels, BitImageProcessorPil(**cut, **imagenet), frame)
    return from_checkpoint("dinov2", reference, folder, frame)


def dinov2_with_registers(folder, frame):
    config = transformers.Dinov2WithRegistersConfig(**transformers_sizes(DINOV2_SIZE), num_register_tokens=4)
    reference = random_model(transformers.Dinov2WithRegistersModel, config)
    return from_checkpoint("dinov2 with registers", reference, folder, frame, registers=4)


def from_checkpoint(name, reference, folder, frame, registers=0):
    reference.save_pretrained(folder / name)
    encoder = build_encoder(str(folder / name))
    with mock.patch.object(pretrained, "interpolate_positions"):
        keras_hubs = build_encoder(str(folder / name))
    pixels = encoder.prepare(frame)
    tokens = run(reference, pixels).last_hidden_state[:, 1 + registers :]
    report(f"{name}, KerasHub's position embeddings", keras_hubs.encode([pixels]), tokens, verdict=False)
    return report(name, encoder.encode([pixels]), tokens)


# ---------------------------------------------------------------- models and their weights

TEXT = dict(num_layers=1, num_heads=1, intermediate_dim=8, hidden_dim=WIDTH, embedding_dim=WIDTH)
TEXT |= dict(vocabulary_size=8, max_sequence_length=8)
CONVERTER = dict(interpolation="bicubic", antialias=True)


def transformers_sizes(size):
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=HEADS)
    return sizes | dict(intermediate_size=MLP, mlp_ratio=MLP // WIDTH, image_size=size, patch_size=PATCH)


def keras_sizes(size):
    sizes = dict(hidden_dim=WIDTH, num_layers=BLOCKS, num_heads=HEADS, intermediate_dim=MLP)
    return sizes | dict(image_shape=(size, size, 3), patch_size=PATCH)


def random_model(model_class, config):
    """A model without a zero or a one left among its weights: those hide what is missing or swapped."""
    torch.manual_seed(1)
    model = model_class(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight), alpha=0.05)
    return model


def copy_siglip(vision, reference):
    """All that tokens depend on, not the pooling head."""
    copy_weights(vision.embedding.patch_embedding, reference.embeddings.patch_embedding)
    copy_weights(vision.embedding.position_embedding, reference.embeddings.position_embedding)
    for block, source in zip(vision.encoder_layers, reference.encoder.layers, strict=True):
        copy_block((block.layer_norm1, block.self_attn, block.layer_norm2, block.mlp.fc1, block.mlp.fc2), source)
    copy_weights(vision.post_layer_norm, reference.post_layernorm)


def copy_block(parts, source):
    """A transformer block, given as its LayerNorm, attention, LayerNorm and two dense layers."""
    norm_1, attention, norm_2, dense_1, dense_2 = parts
    copy_weights(norm_1, source.layer_norm1)
    copy_weights(attention.query_dense, source.self_attn.q_proj)
    copy_weights(attention.key_dense, source.self_attn.k_proj)
    copy_weights(attention.value_dense, source.self_attn.v_proj)
    copy_weights(attention.output_dense, source.self_attn.out_proj)
    copy_weights(norm_2, source.layer_norm2)
    copy_weights(dense_1, source.mlp.fc1)
    copy_weights(dense_2, source.mlp.fc2)


def copy_weights(layer, module):
    """A PyTorch module's weight and bias into the Keras layer of its kind; attention splits the width into heads."""
    values = [value.numpy() for value in module.parameters()]
    if isinstance(module, torch.nn.Conv2d):
        values[0] = values[0].transpose(2, 3, 1, 0)
    elif isinstance(module, torch.nn.Linear):
        values[0] = values[0].T
    layer.set_weights([value.reshape(old.shape) for value, old in zip(values, layer.weights, strict=True)])


def save_preset(folder, backbone, converter):
    backbone.save_to_preset(str(folder))
    converter.save_to_preset(str(folder))
    return str(folder)


def run(reference, pixels):
    with torch.inference_mode():
        return reference(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))


# ---------------------------------------------------------------- what is printed


def report(name, tokens, expected, verdict=True):
    """Print the largest difference between tokens (1, T, D); return it by name."""
    expected = expected.numpy()
    if tokens.shape != expected.shape:
        sys.exit(f"parity.py: {name} gives tokens {tokens.shape} where Transformers gives {expected.shape}")
    largest = np.abs(tokens - expected).max()
    note = "" if verdict else "  (for the record)"
    print(f"{name}  {tokens.shape[1]} x {tokens.shape[2]} tokens, largest difference {largest:.1e}{note}", flush=True)
    return {name: largest}


def report_preparation(name, pixels, processor, frame):
    """Print how far our pixels are from those that the model sees of a Transformers processor's, in grey levels."""
    theirs = np.asarray(processor(frame, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    seen = theirs[: len(pixels), : len(pixels)]
    levels = np.abs(pixels - seen) * np.float32(processor.image_std) * 255
    print(f"{name} preparation  grey levels apart: {levels.mean():.2f} on average, {levels.max():.2f} at most")


if __name__ == "__main__":
    main()
