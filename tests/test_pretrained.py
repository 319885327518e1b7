"""The pretrained encoders: the right tokens of the right layer, whatever the file and the dtype; plain errors."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from presets import BLOCKS, HEADS, WIDTH, tiny_presets
from stages import stage

from basics.artifacts import read_json
from basics.running import ROOT, InputError
from common import keras, keras_hub
from tokens import pretrained
from tokens.pretrained import build_encoder
from tokens.videos import sample_frames

CORPUS = SHARED / "corpus"
WEIGHTS = SHARED / "weights" / "mobilenet_v1_1.0_imagenet_to_pw12.weights.h5"
FAMILIES = ("siglip", "dinov2", "clip")
LAYERS = keras_hub.layers


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def extract(*arguments):
    return stage("01_extract_features", *arguments)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    return tiny_presets(tmp_path_factory.mktemp("presets"))


@pytest.fixture(scope="module")
def encoders(presets):
    return {family: build_encoder(str(folder)) for family, folder in presets.items()}


@pytest.fixture(scope="module")
def tokens(encoders):
    """Three prepared frames of each family, and their tokens."""
    frames = [noise(60, 80, seed=seed) for seed in range(3)]
    prepared = {family: [encoder.prepare(frame) for frame in frames] for family, encoder in encoders.items()}
    return {family: (prepared[family], encoder.encode(prepared[family])) for family, encoder in encoders.items()}


def saved(folder, *names):
    with h5py.File(folder / "model.weights.h5") as file:
        return [np.array(file[f"layers/{name}"]) for name in names]


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("family, count, width", [("siglip", 9, WIDTH), ("dinov2", 729, WIDTH), ("clip", 1, 24)])
def test_tokens_have_the_promised_count_width_and_type(encoders, tokens, family, count, width):
    encoder, made = encoders[family], tokens[family][1]
    assert (encoder.name, encoder.tokens, encoder.dim) == (family, count, width)
    assert made.shape == (3, count, width) and made.dtype == np.float32 and np.isfinite(made).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_same_for_every_load_call_and_batch(presets, encoders, tokens, family):
    prepared, made = tokens[family]
    again = build_encoder(str(presets[family]))
    assert again.recipe == encoders[family].recipe == json.loads(json.dumps(again.recipe))
    np.testing.assert_array_equal(encoders[family].encode(prepared), made)
    np.testing.assert_allclose(again.encode(prepared), made, atol=1e-5)
    np.testing.assert_allclose(encoders[family].encode(prepared[1:2]), made[1:2], atol=1e-5)
    assert np.abs(made[0] - made[1]).max() > 1e-3


@pytest.mark.parametrize("family, patches", [("siglip", [(0, 1), (2, 0)]), ("dinov2", [(3, 20), (26, 0)])])
def test_tokens_are_in_row_major_order(encoders, tokens, family, patches):
    prepared, made = tokens[family]
    changed = []
    for row, column in patches:
        image = prepared[0].copy()
        image[14 * row : 14 * row + 14, 14 * column : 14 * column + 14] *= -1
        changed.append(image)
    change = np.linalg.norm(encoders[family].encode(changed) - made[0], axis=-1)
    grid = prepared[0].shape[0] // 14
    assert change.argmax(axis=1).tolist() == [row * grid + column for row, column in patches]


@pytest.mark.parametrize(
    "family, norm", [("siglip", "sig_lip_vision_encoder/layers/layer_normalization"), ("dinov2", "layer_normalization")]
)
def test_tokens_are_those_after_the_last_layer_norm(presets, tokens, family, norm):
    gamma, beta = saved(presets[family], f"{norm}/vars/0", f"{norm}/vars/1")
    normal = (tokens[family][1] - beta) / gamma
    np.testing.assert_allclose(normal.mean(-1), 0, atol=1e-3)
    np.testing.assert_allclose(normal.var(-1), 1, atol=1e-2)


def test_siglip_tokens_are_kerashubs_before_its_head(presets, tokens):
    prepared, made = tokens["siglip"]
    vision = keras_hub.models.SigLIPBackbone.from_preset(str(presets["siglip"])).vision_encoder
    whole = np.pad(prepared, ((0, 0), (0, 6), (0, 6), (0, 0)), constant_values=9.0)  # what no patch sees
    theirs = keras.Model(vision.inputs, vision.post_layer_norm.output)([whole])
    np.testing.assert_allclose(made, theirs, atol=1e-5)


def test_clip_tokens_are_kerashubs_embedding_or_the_layer_before(presets, tokens):
    prepared, made = tokens["clip"]
    backbone = keras_hub.models.CLIPBackbone.from_preset(str(presets["clip"]))
    images = np.stack(prepared)
    np.testing.assert_allclose(made[:, 0], backbone.get_vision_embeddings(images), atol=1e-5)
    pooled = build_encoder(str(presets["clip"]), layer="pooled")
    before = pooled.encode(prepared)
    assert (pooled.tokens, pooled.dim, pooled.recipe["layer"]) == (1, WIDTH, "pooled")
    np.testing.assert_allclose(
        before[:, 0], backbone.vision_pooler(backbone.vision_encoder({"images": images})), atol=1e-5
    )
    np.testing.assert_allclose(made, before @ np.array(backbone.vision_projection.kernel), atol=1e-5)


def test_clips_default_layer_has_the_recipe_of_its_name(presets, encoders):
    assert build_encoder(str(presets["clip"]), layer="projection").recipe == encoders["clip"].recipe


def test_dinov2_tokens_are_those_of_patches_alone(presets, tokens):
    prepared, made = tokens["dinov2"]
    backbone = keras_hub.models.DINOV2Backbone.from_preset(str(presets["dinov2"]), image_shape=(378, 378, 3))
    pretrained.interpolate_positions(backbone.embeddings)
    whole = np.array(backbone({"images": np.stack(prepared)}))
    assert whole.shape[1] == 1 + 2 + 729
    np.testing.assert_allclose(made, whole[:, 3:], atol=1e-5)


def cubic_taps(place):
    """The four neighbours of a place on a line and their weights: Keys' kernel with a = -3/4."""
    a, first = -0.75, int(np.floor(place)) - 1
    distance = [abs(place - (first + i)) for i in range(4)]
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in distance]
    far = [a * (((d - 5) * d + 8) * d - 4) for d in distance]
    weights = [n if d <= 1 else f for d, n, f in zip(distance, near, far, strict=True)]
    return [(min(max(first + i, 0), 36), weight) for i, weight in enumerate(weights)]


def position_grids(folder):
    """Position embeddings as saved (37, 37, D) and as an encoder of the folder interpolates them (27, 27, D)."""
    [learned] = saved(folder, "dinov2_embedding/vars/4")
    layers = build_encoder(str(folder)).model.layers
    [embeddings] = [layer for layer in layers if hasattr(layer, "interpolated_position_embeddings")]
    ours = np.array(embeddings.interpolated_position_embeddings)
    np.testing.assert_array_equal(ours[:, 0], learned[:, 0])
    return learned[0, 1:].reshape(37, 37, -1), ours[0, 1:].reshape(27, 27, -1)


def test_dinov2_positions_are_pytorchs_bicubic(presets):
    learned, ours = position_grids(presets["dinov2"])
    for row, column in ((0, 0), (13, 5), (26, 26)):
        y, x = ((place + 0.5) * 37 / 27 - 0.5 for place in (row, column))
        expected = sum(v * h * learned[i, j] for i, v in cubic_taps(y) for j, h in cubic_taps(x))
        np.testing.assert_allclose(ours[row, column], expected, atol=1e-5)


def test_dinov2_positions_are_antialiased_where_the_preset_says_so(presets, tmp_path):
    folder = Path(shutil.copytree(presets["dinov2"], tmp_path / "registers"))
    config = read_json(folder / "config.json")
    config["config"]["antialias_in_interpolation"] = True
    (folder / "config.json").write_text(json.dumps(config))
    learned, ours = position_grids(folder)
    for channel in (0, WIDTH - 1):
        theirs = Image.fromarray(learned[..., channel]).resize((27, 27), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[..., channel], theirs, atol=1e-5)


def test_the_digest_of_weights_is_that_of_saved_weights_alone(encoders):
    model = keras.models.clone_model(encoders["dinov2"].model)
    model.set_weights(encoders["dinov2"].model.get_weights())
    [positions] = [weight for weight in model.weights if weight.name == "interpolated_position_embeddings"]
    positions.assign(positions + 1e-7)
    assert pretrained.weights_digest(model) == encoders["dinov2"].recipe["weights_sha256"]
    model.weights[0].assign(model.weights[0] * 1.001)
    assert pretrained.weights_digest(model) != encoders["dinov2"].recipe["weights_sha256"]


def inner_layers(layer):
    """The layers of a model, with those inside its models."""
    for inner in getattr(layer, "layers", []):
        yield from inner_layers(inner) if isinstance(inner, keras.Model) else [inner]


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_dtype_is_that_of_weights_and_computation(presets, tokens, family, dtype):
    prepared, made = tokens[family]
    encoder = build_encoder(str(presets[family]), dtype=dtype)
    half = encoder.encode(prepared)
    assert half.dtype == np.float32 and encoder.recipe["encoder_dtype"] == dtype
    stored = {str(weight.dtype) for weight in encoder.model.weights if "float" in str(weight.dtype)}
    assert stored == {"bfloat16" if dtype == "bfloat16" else "float32"}
    computed = {layer.compute_dtype for layer in inner_layers(encoder.model) if layer.weights}
    assert computed == {"bfloat16"}
    difference = np.abs(half - made).max() / made.std()
    assert 1e-3 < difference < 0.15  # bfloat16 has 8 bits: steps of 1/256


def test_pooling_a_grid_of_patches_averages_neighbours(presets, tokens):
    prepared, made = tokens["dinov2"]
    pooled = build_encoder(str(presets["dinov2"]), pool=9)
    expected = made.reshape(3, 3, 9, 3, 9, WIDTH).mean((2, 4)).reshape(3, 9, WIDTH)
    np.testing.assert_allclose(pooled.encode(prepared), expected, atol=1e-5)
    assert pooled.tokens == 9
    with pytest.raises(InputError, match="choose one of 1, 3, 9, 27"):
        build_encoder(str(presets["dinov2"]), pool=2)


# ---------------------------------------------------------------- what cannot be loaded


def without(name):
    return lambda folder: (folder / name).unlink()


def truncated(folder):
    data = (folder / "model.weights.h5").read_bytes()
    (folder / "model.weights.h5").write_bytes(data[: len(data) // 2])


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def of_another_family(folder):
    emptied(folder)
    sizes = dict(patch_size=14, num_layers=BLOCKS, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=WIDTH)
    keras_hub.models.ViTBackbone((28, 28, 3), **sizes).save_to_preset(str(folder))
    LAYERS.ViTImageConverter(image_size=(28, 28)).save_to_preset(str(folder))


DAMAGES = [(without("image_converter.json"), "image_converter.json"), (without("config.json"), "config.json")]
DAMAGES += [(without("model.weights.h5"), "model.weights"), (truncated, "truncated"), (emptied, "config.json")]
DAMAGES += [(of_another_family, "ViTBackbone is none of siglip, dinov2, clip")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("damage, reason", DAMAGES[:4])
def test_a_broken_preset_of_any_family_is_refused(presets, tmp_path, family, damage, reason):
    folder = Path(shutil.copytree(presets[family], tmp_path / "broken"))
    damage(folder)
    with pytest.raises(InputError, match=f"{folder} cannot be loaded .*{reason}.*save_to_preset"):
        build_encoder(str(folder))


@pytest.mark.parametrize("damage, reason", DAMAGES)
def test_a_broken_preset_leaves_one_line_and_no_features_folder(presets, clips, tmp_path, damage, reason):
    folder = Path(shutil.copytree(presets["clip"], tmp_path / "broken"))
    damage(folder)
    with pytest.raises(InputError, match=f"{folder} cannot be loaded .*{reason}.*save_to_preset") as error:
        extract("--videos", clips, "--features", tmp_path / "f", "--encoder", folder)
    assert "\n" not in str(error.value) and not (tmp_path / "f").exists() and folder.exists()


def test_the_script_ends_with_status_1_and_one_line(presets, clips, tmp_path):
    folder = Path(shutil.copytree(presets["clip"], tmp_path / "broken"))
    truncated(folder)
    arguments = ["--videos", clips, "--features", tmp_path / "f", "--encoder", folder]
    script = ROOT / "01_extract_features.py"
    clean = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # TensorFlow sets it
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "f").exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("01_extract_features.py: ")]
    assert line.startswith(f"01_extract_features.py: {folder} cannot be loaded") and "Traceback" not in done.stderr


def test_what_is_no_encoder_is_refused(presets, tmp_path):
    (tmp_path / "notes.txt").write_text("no preset")
    for name in ("nothing", str(tmp_path / "notes.txt"), str(tmp_path / "missing")):
        with pytest.raises(InputError, match=f"unknown encoder '{name}'; choose one of dct, mobilenet, siglip"):
            build_encoder(name)
    for name in ("dct", "siglip", str(presets["clip"])):
        with pytest.raises(InputError, match=f"--encoder-weights: not for the encoder {name}"):
            build_encoder(name, weights="some.h5")
    for option, flag in (({"layer": "pooled"}, "--layer"), ({"dtype": "bfloat16"}, "--encoder-dtype")):
        with pytest.raises(InputError, match=f"{flag}: not for the encoder dct"):
            build_encoder("dct", **option)


@pytest.mark.parametrize(
    "family, choices", [("siglip", "one output"), ("dinov2", "one output"), ("clip", "projection, pooled")]
)
def test_a_wrong_layer_is_refused_before_the_weights_are_loaded(presets, tmp_path, family, choices):
    folder = Path(shutil.copytree(presets[family], tmp_path / "light"))
    (folder / "model.weights.h5").unlink()
    with pytest.raises(InputError, match=f"--layer last: {family} has no such layer; .*{choices}"):
        build_encoder(str(folder), layer="last")


# ---------------------------------------------------------------- downloads


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and no caches, whatever the machine has; returns the folder of the caches."""

    def fail(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    keras.ops.ones(1)  # here TensorFlow looks for GPUs, and may complain, on standard error
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path / "keras"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    return tmp_path


KAGGLE, FILES = "https://www.kaggle.com/models/keras", "config.json, image_converter.json and model.weights.h5"


@pytest.mark.parametrize(
    "encoder, files, place, flag",
    [("siglip", FILES, f"{KAGGLE}/siglip/keras/siglip_so400m_patch14_384", "--encoder FOLDER")]
    + [("dinov2_base", FILES, f"{KAGGLE}/dinov2/keras/dinov2_base", "--encoder FOLDER")]
    + [("hf://nobody/nothing", FILES, "https://huggingface.co/nobody/nothing", "--encoder FOLDER")]
    + [("mobilenet", "mobilenet_1_0_224_tf_no_top.h5", "https://storage.googleapis.com", "--encoder-weights FILE")],
)
def test_a_download_without_network_is_explained_in_a_line(offline, clips, capfd, encoder, files, place, flag):
    with pytest.raises(InputError, match=flag) as error:
        extract("--videos", clips, "--features", offline / "f", "--encoder", encoder)
    message = str(error.value)
    assert "\n" not in message and message.index("; fetch ") and files in message and place in message
    assert capfd.readouterr().err == ""
    assert {path.name for path in offline.rglob("*")} <= {"kaggle", "keras", "models"}


def test_files_in_kagglehubs_cache_stay_where_empty_folders_go(offline):
    other = offline / "kaggle" / "models" / "keras" / "siglip" / "keras" / "other" / "1" / "config.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    with pytest.raises(InputError, match="fetch"):
        build_encoder("siglip")
    assert other.exists() and [path.name for path in other.parents[1].parent.iterdir()] == ["other"]
    (offline / "empty").mkdir()
    for name in (f"kaggle://{offline}/empty", str(offline / "empty")):
        with pytest.raises(InputError, match="cannot be loaded"):
            build_encoder(name)
    assert (offline / "empty").exists()


# ---------------------------------------------------------------- MobileNet


@pytest.fixture(scope="module")
def mobilenet_files(tmp_path_factory):
    """The same random weights in Keras 3's layout, up to block 5, and in that of the download, all 13 blocks."""
    folder, random = tmp_path_factory.mktemp("mobilenet"), np.random.default_rng(0)
    whole = pretrained.mobilenet(13, "float32", None)
    for weight in whole.weights:
        low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-0.3, 0.3)
        if "kernel" not in weight.name:
            weight.assign(random.uniform(low, high, weight.shape))
    with h5py.File(folder / "whole.h5", "w") as file:
        keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file, whole)
    cut = keras.Model(whole.input, whole.get_layer("conv_pw_5_relu").output)
    cut.save_weights(folder / "cut.weights.h5")
    return folder, cut


def test_mobilenet_tokens_are_the_same_from_both_layouts_of_files(mobilenet_files):
    folder, cut = mobilenet_files
    new, old = (
        build_encoder("mobilenet", layer="conv_pw_5", weights=folder / name) for name in ("cut.weights.h5", "whole.h5")
    )
    prepared = [new.prepare(noise(60, 80)), new.prepare(noise(50, 40))]
    made = new.encode(prepared)
    assert (new.tokens, new.dim, made.shape, made.dtype) == (784, 256, (2, 784, 256), np.float32)
    assert made.std() > 0.1
    np.testing.assert_array_equal(old.encode(prepared), made)
    assert old.recipe == new.recipe
    norm = cut.get_layer("conv_pw_5_bn")
    normed = keras.Model(cut.input, norm.output).predict_on_batch(np.stack(prepared)).reshape(2, 784, 256)
    np.testing.assert_allclose(made, (normed - np.array(norm.beta)) / np.array(norm.gamma), atol=1e-5)
    pooled = build_encoder("mobilenet", pool=14, layer="conv_pw_5", weights=folder / "cut.weights.h5")
    expected = made.reshape(2, 2, 14, 2, 14, 256).mean((2, 4)).reshape(2, 4, 256)
    np.testing.assert_allclose(pooled.encode(prepared), expected, atol=1e-5)


def test_mobilenet_frames_are_the_central_square_between_minus_1_and_1(mobilenet_files):
    prepare = build_encoder("mobilenet", weights=mobilenet_files[0] / "cut.weights.h5").prepare
    frame = np.full((30, 61, 3), 255, np.uint8)
    frame[:, :15] = frame[:, 45:] = 0
    np.testing.assert_allclose(prepare(frame), 1, atol=1e-5)
    np.testing.assert_allclose(prepare(np.zeros((9, 9, 3), np.uint8)), -1, atol=1e-5)


def test_mobilenet_weights_that_do_not_fit_are_explained(mobilenet_files, presets, tmp_path):
    folder, _ = mobilenet_files
    cut = folder / "cut.weights.h5"
    with pytest.raises(InputError, match="holds 5 of MobileNet's 13 blocks, too few for --layer conv_pw_6.*fetch"):
        build_encoder("mobilenet", layer="conv_pw_6", weights=cut)
    assert build_encoder("mobilenet", layer="conv_pw_1", weights=cut).dim == 64
    with pytest.raises(InputError, match="holds 0 of MobileNet's 13 blocks"):
        build_encoder("mobilenet", weights=presets["clip"] / "model.weights.h5")
    with pytest.raises(InputError, match="conv_pw_99: mobilenet has no such layer; choose one of conv_pw_1, "):
        build_encoder("mobilenet", layer="conv_pw_99")
    (tmp_path / "half.weights.h5").write_bytes(cut.read_bytes()[:300_000])
    (tmp_path / "text.h5").write_text("no weights")
    for name, reason in (("half.weights.h5", "truncated"), ("text.h5", "signature"), ("gone.h5", "No such file")):
        with pytest.raises(
            ValueError, match=f"{tmp_path / name} cannot be read .*{reason}.*--encoder-weights"
        ) as error:
            build_encoder("mobilenet", weights=tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not (WEIGHTS.exists() and CORPUS.exists()), reason="the shared weights or corpus are not here")
def test_real_weights_see_frames_on_the_scale_they_were_trained_on():
    encoder = build_encoder("mobilenet", layer="conv_pw_5", weights=WEIGHTS)
    files = [sorted(folder.iterdir())[0] for folder in sorted((CORPUS / "clips").iterdir())][:16]
    tokens = encoder.encode([encoder.prepare(next(sample_frames(file))[1]) for file in files])
    assert np.abs(tokens.mean((0, 1))).mean() < 0.3
    assert 0.7 < tokens.std((0, 1)).mean() < 1.3


# ---------------------------------------------------------------- the script


def test_a_second_run_does_nothing_and_refuses_other_weights(presets, clips, tmp_path):
    folder = Path(shutil.copytree(presets["clip"], tmp_path / "clip"))
    run = ["--videos", clips, "--features", tmp_path / "f", "--limit", 1, "--encoder", folder]
    assert extract(*run)["videos"] == 3
    recipe = read_json(tmp_path / "f" / "recipe.json")
    assert (recipe["encoder"], recipe["layer"], recipe["tokens"], recipe["dim"]) == ("clip", "projection", 1, 24)
    assert (recipe["encoder_dtype"], recipe["preset"]) == ("float32", str(folder)) and recipe["prepare"]["crop"]
    moved = folder.rename(tmp_path / "moved")
    again = extract(*run[:-1], moved)
    assert (again["videos"], again["skipped"]) == (0, 3)
    with h5py.File(moved / "model.weights.h5", "r+") as file:
        kernel = file["layers/dense/vars/0"]
        kernel[0, 0] += 1
    with pytest.raises(InputError, match=r"made with other settings \(weights_sha256.*--overwrite"):
        extract(*run[:-1], moved)
    with pytest.raises(InputError, match="other settings .dim, layer, weights_sha256"):
        extract(*run[:-1], moved, "--layer", "pooled")
    assert len(list((tmp_path / "f").rglob("*.npz"))) == 3
