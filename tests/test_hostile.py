"""Files that are damaged, edited or made to harm: one line that names the file, through the one reader of its kind."""

import hashlib
import io
import json
import os
import shutil
import struct
import sys
import threading
import unicodedata
import zipfile

import numpy as np
import pytest
from small import RECIPE, write_folder
from stages import module, stage

from basics import artifacts
from basics.artifacts import file_digest, finished_metrics, open_zip, read_arrays, read_json, write_json
from basics.checks import Between, check
from basics.code import print_other_code
from basics.running import InputError, run_script
from common import build_saga, load_model, load_saga
from tokens.dataset import Windows, features_file, features_recipe, map_tokens, read_index, read_row, usable
from tokens.generators import load_generators, resolve_generator
from tokens.images import read_images
from tokens.split import fold_splits
from training.callbacks import load_checkpoint, save_checkpoint, save_model
from training.evaluation import predict


def refused(path, read, *arguments, **named):
    """The one line with which a reader refuses a file, which names it."""
    with pytest.raises(InputError) as raised:
        read(*arguments, **named)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message and len(message) < 700 + len(str(path))
    return message


# ---------------------------------------------------------------- what must be held


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        ({"a": 1}, {"a": float, "b?": str}, None),
        ({"a": True}, {"a": int}, "a is True, not a whole number"),
        ({"a": float("nan")}, {"a": float}, "a is nan, not a finite number"),
        ({"a": 10**400}, {"a": float}, "not a finite number"),
        ({"a": [1, 2, 3]}, {"a": [float, float]}, "not a list of 2"),
        ({"a": [1, "x"]}, {"a": [float]}, r"a\[1\] is 'x'"),
        ({"a": None}, {"a": ([float], None)}, None),
        ({"a": {}}, {"a": (float, None)}, "not a finite number or null"),
        ({"x": {"b": 3}}, {str: {"b": str}}, r"x\.b is 3, not text"),
        ({"s": ["x"]}, {"s": {"train", "val"}}, "not one of train, val"),
        ({"n": 0}, {"n": range(1, 10)}, "not a whole number from 1 to 9"),
        ({"n": 2.5}, {"n": Between(0, 1)}, "not a number from 0 to 1"),
        ({}, {"q": object}, "it lacks q"),
        ([], {"q": object}, "not an object"),
    ],
)
def test_a_part_that_is_not_as_wanted_is_named(value, wanted, message):
    if message is None:
        return check(value, wanted)
    with pytest.raises(ValueError, match=message):
        check(value, wanted)


# ---------------------------------------------------------------- JSON

SIZES = {"frames": 8, "tokens": 2, "dim": 12}
JSON = {
    "empty": b"",
    "cut": b'{"frames": 8',
    "list": b"[8, 2, 12]",
    "no text": b'\xc3\x28{"frames": 8}',
    "nested": b'{"frames": ' + b"[" * 100_000,
    "nested less": json.dumps(SIZES | {"note": json.loads("[" * 200 + "]" * 200)}).encode(),
    "half a character": json.dumps(SIZES | {"encoder": "\ud800"}).encode(),
    "digits": b'{"frames": ' + b"9" * 5000 + b"}",
} | {
    f"{key} {value!r}": json.dumps(SIZES | {key: value}).encode()
    for key, value in [("dim", "144"), ("frames", None), ("frames", 0), ("dim", 10**12), ("tokens", 1e999)]
    + [
        ("dim", True),
        ("fps", -1),
        ("code", ["a"]),
        ("equalize", "no"),
        ("simulated", "no"),
        ("encoder", 3),
        ("recipe", []),
    ]
}


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_json(tmp_path, content):
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    refused(path, features_recipe, tmp_path)


def test_larger_than_any_text_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "MOST_TEXT", 100)
    write_json(tmp_path / "a.json", {"text": "x" * 100})
    assert "larger than" in refused(tmp_path / "a.json", read_json, tmp_path / "a.json")


def test_recipe_of_other_sizes_than_the_tokens_and_of_impossible_ones(features, tmp_path):
    folder = shutil.copytree(features, tmp_path / "features")
    flags = ["--features", folder, "--run", tmp_path / "run", "--epochs", 1]
    write_json(folder / "recipe.json", RECIPE | {"tokens": 9})
    assert "8, 2, 12), but index and recipe say" in refused(".npz", stage, "02_pretrain_binary", *flags)
    assert "index and recipe say" in refused(".npz", read_images, folder)
    write_json(folder / "recipe.json", RECIPE | {"dim": 10**5})
    assert "a model has at most" in refused("", stage, "02_pretrain_binary", *flags)


def test_code_in_a_recipe_opens_no_file_outside_the_project(tmp_path, capsys):
    (tmp_path / "a.py").write_text("syntax error")
    print_other_code("x", {"code": {f"{tmp_path}/a.py:f": "0", "../a.py:f": "0", "README.md:f": "0", "a\0.py:f": "0"}})
    assert "and 1 more) and is used as it is" in capsys.readouterr().out


# ---------------------------------------------------------------- CSV

ROW = {"path": "SVD/a.mp4", "generator": "SVD", "group": "a", "stratum": "", "split": "train", "windows": "1"}
ROW |= dict.fromkeys(("fps", "size", "length", "container", "codec", "error", "source"), "")


def index_of(**changes):
    row = ROW | changes
    return (",".join(row) + "\n" + ",".join(row.values()) + "\n").encode()


CSV = {
    "empty": b"",
    "header alone is cut": b"path,gener",
    "no text": index_of(source="\xe9").decode().encode("latin-1"),
    "quote never closed": index_of(source='"a'),
    "huge cell": index_of(source="a" * 200_000),
    "NUL": index_of(source="a\0"),
    "row cut": index_of()[:-20],
    "row too long": index_of()[:-1] + b",more\n",
    "other separator within": index_of(generator="SVD;x").replace(b",", b";"),
} | {
    f"{key} {value}": index_of(**{key: value})
    for key, value in [("windows", "-1"), ("windows", "9" * 20), ("windows", "10e3"), ("windows", "99999999999")]
    + [("windows", "999999999"), ("split", ""), ("split", "trian"), ("generator", ""), ("group", ""), ("path", "")]
    + [("path", "../a.mp4"), ("path", "/etc/a.mp4"), ("path", "a/../../b"), ("path", "..")]
}


@pytest.mark.parametrize("content", CSV.values(), ids=CSV)
def test_csv(tmp_path, content):
    (tmp_path / "index-1-of-1.csv").write_bytes(content)
    refused(tmp_path, read_index, tmp_path)


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "", "a\0"])
def test_no_path_leaves_the_folder_of_features(tmp_path, path):
    refused(tmp_path, features_file, tmp_path, path)


@pytest.mark.parametrize(
    ("encoding", "separator"), [("utf-8-sig", ","), ("utf-8-sig", ";"), ("utf-16", "\t"), ("utf-16", ",")]
)
def test_what_excel_writes_is_read(tmp_path, encoding, separator):
    text = "name,aliases,task,sd_version,team\r\nReal,,Real,Real,Real\r\nMöbius,M|Mö,T2V,Unknown,Ö\r\n"
    (tmp_path / "a.csv").write_bytes(text.replace(",", separator).encode(encoding))
    assert load_generators(tmp_path / "a.csv")["Möbius"].team == "Ö"


@pytest.mark.parametrize(
    "line",
    [",,T2V,X,Y", "A", "A,,T2V", "A,,,X,Y", "A,,T2V,,Y", "A,,T2V,X,", "A,,T2V,X,  ", "A,,Real,Real,Real"]
    + ["A,,T2V,X,Real", "A,,real,X,Y", "a/b,,T2V,X,Y", "..,,T2V,X,Y", "A,,T2V,X,Y,Z", "A\x1b[31m,,T2V,X,Y"]
    + ["A,real,T2V,X,Y", '"A,,T2V,X,Y'],
)
def test_generator_table_is_checked_row_by_row(tmp_path, line):
    path = tmp_path / "generators.csv"
    path.write_text(f"name,aliases,task,sd_version,team\nReal,,Real,Real,Real\n{line}\n")
    refused(path, load_generators, path)
    path.write_text("name,aliases,task,sd_version,team\nReal,,T2V,Real,Real\n")
    refused(path, load_generators, path)


@pytest.mark.parametrize("month", ["2023", "2023-13", "2023-1", "March", "2023-01-02"])
def test_month_of_a_release_may_be_missing_and_not_wrong(tmp_path, month):
    path = tmp_path / "generators.csv"
    rows = "name,aliases,task,sd_version,team,released\nReal,,Real,Real,Real,\nA,,T2V,X,Y,2024-01\nB,,T2V,X,Y\n"
    path.write_text(rows)
    assert [own.released for own in load_generators(path).values()] == ["", "2024-01", ""]
    path.write_text(f"{rows}C,,T2V,X,Y,{month}\n")
    assert f"C: released is {month!r}" in refused(path, load_generators, path)


def test_names_are_compared_however_unicode_composes_them(tmp_path):
    path = tmp_path / "generators.csv"
    composed, apart = (unicodedata.normalize(form, "Möbius") for form in ("NFC", "NFD"))
    text = f"name,aliases,task,sd_version,team\nReal,,Real,Real,Real\n{composed},,T2V,X,Y\n"
    path.write_text(text)
    assert resolve_generator(apart, load_generators(path)) == composed
    path.write_text(f"{text}{apart},,T2V,X,Y\n")
    assert "share the name" in refused(path, load_generators, path)


# ---------------------------------------------------------------- zips and .npz


def patched(content, offset, value):
    """The bytes of a zip with a field of two bytes changed in each local header and each entry of its directory."""
    data = bytearray(content)
    for mark, at in ((b"PK\3\4", offset), (b"PK\1\2", offset + 2)):
        place = data.find(mark)
        while place >= 0:
            data[place + at : place + at + 2] = struct.pack("<H", value)
            place = data.find(mark, place + 4)
    return bytes(data)


def packed(members, kind=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def array_file(array, header=None):
    """An .npy, or one whose header says something else."""
    file = io.BytesIO()
    np.save(file, array)
    if header is None:
        return file.getvalue()
    text = header.encode().ljust(117) + b"\n"
    return file.getvalue()[:8] + struct.pack("<H", len(text)) + text + array.tobytes()


def header(shape, kind="<f2", order="False"):
    return f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"


TOKENS = np.random.default_rng(0).normal(size=(1, 8, 2, 12)).astype(np.float16)
VALID = np.ones((1, 8), bool)
WHOLE = {"tokens.npy": array_file(TOKENS), "valid.npy": array_file(VALID), "times.npy": array_file(np.zeros((1, 8)))}


def damage_middle(content):
    return content[: len(content) // 3] + bytes(64) + content[len(content) // 3 + 64 :]


NPZ = {
    "empty": b"",
    "text": b"a features file",
    "cut": packed(WHOLE)[:300],
    "method 99": patched(packed(WHOLE), 8, 99),
    "encrypted": patched(packed(WHOLE), 6, 1),
    **{
        f"damaged {kind}": damage_middle(packed({"tokens.npy": WHOLE["tokens.npy"]}, kind))
        for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    },
    "nothing in it": packed({}),
    "no npy": packed(dict.fromkeys(WHOLE, b"x")),
}
HEADERS = {
    "negative": header((-2, -8, 2, 12)),
    "absurd": header((10**9, 8, 2, 12)),
    "overflow": header((2**40, 2**40, 2, 12)),
    "zero width": header((10**15,), "<U0"),
    "objects": header((1, 8, 2, 12), "|O"),
    "void": header((1, 8, 2, 12), "|V0"),
    "no token": "{'descr': '<f2', 'shape': (((",
    "no python": "\\\0",
    "nested": "(" * 100,
    "integers": header((1, 8, 2, 24), "|i1"),
    "complex": header((1, 8, 2, 3), "<c8"),
    "booleans": header((1, 8, 2, 24), "|b1"),
    "no windows": header((0, 8, 2, 12)),
    "two axes": header((16, 12)),
    "Fortran": header((1, 8, 2, 12), order="True"),
}
NPZ |= {name: packed(WHOLE | {"tokens.npy": array_file(TOKENS, text)}) for name, text in HEADERS.items()}


@pytest.mark.parametrize("content", NPZ.values(), ids=NPZ)
def test_npz(tmp_path, content):
    write_json(tmp_path / "recipe.json", RECIPE)
    (tmp_path / "index-1-of-1.csv").write_bytes(index_of())
    path = features_file(tmp_path, ROW["path"])
    path.parent.mkdir()
    path.write_bytes(content)
    rows = usable(read_index(tmp_path), tmp_path)
    for read in (lambda: map_tokens(path), lambda: Windows(rows), lambda: read_images(tmp_path)):
        refused(path, read)
    if content != NPZ["Fortran"]:  # which is right, and only not mapped
        assert refused(path, read_arrays, path, ("tokens",), "make it again").endswith("; make it again")


@pytest.mark.parametrize("valid", [np.ones((2, 8), bool), np.ones((1, 9), bool), np.ones((1, 8)), np.ones(8, bool)])
def test_valid_of_another_shape_or_kind(tmp_path, valid):
    folder = write_folder(tmp_path, ["Real"], clips=1, windows=lambda i: 1)
    path = features_file(folder, "Real/0.mp4")
    path.write_bytes(packed(WHOLE | {"valid.npy": array_file(valid)}))
    refused(path, read_images, folder)


ARRAYS = {"embedding": np.ones((2, 3), "f4"), "video": np.array(["a", "b"]), "probabilities": np.ones((2, 2)) / 2}
WRONG = [("embedding", np.full((2, 3), np.nan)), ("embedding", np.ones(2)), ("embedding", np.ones((3, 3)))]
WRONG += [("embedding", np.ones((2, 3), "c8")), ("video", np.array([1, 2])), ("video", np.array(["\ud800", "b"]))]
WRONG += [
    ("probabilities", np.full((2, 2), 7.0)),
    ("recipe", np.array("[1]")),
    ("recipe", np.array("{")),
    ("recipe", 3),
]
WRONG += [
    ("recipe", np.array(json.dumps({"arguments": 3}))),
    ("row", np.array("[" * 5000)),
    ("recipe", np.array("\ud800")),
]


@pytest.mark.parametrize(("name", "array"), WRONG, ids=lambda part: str(part)[:20].replace("\n", " "))
def test_arrays_of_a_known_name_hold_what_that_name_says(tmp_path, name, array):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert read_arrays(tmp_path / "a.npz")["video"].tolist() == ["a", "b"]
    np.savez(tmp_path / "a.npz", **ARRAYS | {name: array})
    assert "damaged" in refused(tmp_path / "a.npz", read_arrays, tmp_path / "a.npz")


def test_a_row_of_another_file_or_of_other_types(features, tmp_path):
    with np.load(features_file(features, "SVD/2.mp4")) as arrays:
        plain = dict(arrays)
    row = dict(zip(ROW, ROW.values(), strict=True)) | {"windows": 1, "recipe": "x", "frame_keys": []}
    for own in (row, row | {"windows": "1"}, row | {"path": "../a.mp4"}, row | {"more": ""}, {"path": "SVD/b.mp4"}):
        np.savez(tmp_path / "b.mp4.npz", **plain, row=np.array(json.dumps(own)))
        refused(tmp_path / "b.mp4.npz", read_row, tmp_path / "b.mp4.npz")


def test_pipe_that_nobody_writes_to_is_one_line(tmp_path):
    os.mkfifo(path := tmp_path / "pipe")
    for read in (load_generators, read_arrays, read_json):
        refused(path, read, path)
    assert file_digest(path) == hashlib.sha256().hexdigest()


def test_pipe_that_somebody_writes_to_is_read(tmp_path):
    """As <(...) of a shell gives one."""
    reader, writer = os.pipe()
    thread = threading.Timer(0.2, lambda: (os.write(writer, b'{"a": 1}'), os.close(writer)))
    thread.start()
    assert read_json(f"/dev/fd/{reader}") == {"a": 1}
    thread.join()
    os.close(reader)


@pytest.mark.parametrize("run", ["file", "file/run", "pipe/run", "loop"])
def test_run_that_is_no_folder_is_refused_before_anything_is_trained(tmp_path, run):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a").symlink_to("later")
    assert "is no folder" in refused(tmp_path / run.split("/")[0], finished_metrics, tmp_path / run / "bin.json", {})
    assert finished_metrics(tmp_path / "a" / "b" / "bin.json", {}) is None


def test_zip_that_claims_more_than_it_may_unpack_to(tmp_path):
    path = tmp_path / "a.zip"
    content = bytearray(packed({"README.md": bytes(5000), "a.npy": array_file(np.zeros(500))}, zipfile.ZIP_DEFLATED))

    def read(*most):
        path.write_bytes(content)
        with open_zip(path, "fetch it again", *most) as archive:
            return archive.namelist()

    assert read() == ["README.md", "a.npy"]
    assert "unpack to" in refused(path, read, 9000)
    place = content.find(b"PK\1\2")
    while place >= 0:  # two members of nearly 4 GiB
        content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 16)
        place = content.find(b"PK\1\2", place + 4)
    assert "unpack to 8 GiB" in refused(path, read)
    assert "unpack to 8 GiB" in refused(path, read_arrays, path, ("a",))


@pytest.fixture(scope="module")
def model():
    described = dict(class_names=("Real", "a", "b"), features=RECIPE)
    model = build_saga(3, *SIZES.values(), temporal_blocks=2, **described)
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize(
    "change",
    [{"state": np.array("[]")}, {"state": np.array("{}")}, {"state": np.array('{"recipe": {}, "epoch": "x"}')}]
    + [{"variable_3": np.zeros(2)}, {"variable_0": np.full((12, 12, 1), np.nan, "f4")}, {"best_0": np.zeros((5, 5))}],
    ids=lambda change: str(change)[:40],
)
def test_checkpoint(tmp_path, model, change):
    path, recipe = tmp_path / "bin_checkpoint.npz", {"level": "bin"}
    state = {"epoch": 1, "recipe": recipe, "best_score": [0.5, -1.0], "history": [{"variance_fraction": 0.1}]}
    save_checkpoint(path, model, state, model.get_weights())
    assert load_checkpoint(path, model, recipe)[0]["epoch"] == 1
    with np.load(path) as arrays:
        np.savez(path, **dict(arrays) | change)
    assert "damaged" in refused(path, load_checkpoint, path, model, recipe)


# ---------------------------------------------------------------- .keras


def edited(path, out, edit=None, **members):
    """A copy of a .keras file, whose config is edited, or which has other members."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()} | members
    if edit:
        config = json.loads(parts["config.json"])
        edit(config)
        parts["config.json"] = json.dumps(config).encode()
    out.write_bytes(packed(parts))
    return out


def config_edit(**changes):
    return lambda saved: saved["config"].update(changes)


EDITS = {
    f"{key} {value!r}"[:40]: config_edit(**{key: value})
    for key, value in [("num_classes", 10**12), ("num_classes", 4), ("frames", 0), ("tokens", 0), ("heads", 0)]
    + [("dim", 10**5), ("temporal_blocks", 1), ("temporal_blocks", 3), ("dropout", 2), ("dropout", "x"), ("dim", 13)]
    + [("class_names", ["Real", "a"]), ("class_names", ["Real", "a", "a"]), ("class_names", [1, 2, 3])]
    + [
        ("class_names", []),
        ("features", None),
        ("features", RECIPE | {"tokens": "x"}),
        ("features", RECIPE | {"tokens": 3}),
        ("recipe", []),
        ("more", 1),
    ]
    + [("dtype", {"module": "keras.layers", "class_name": "Lambda", "config": {}}), ("dtype", "float7")]
} | {
    "other input": lambda saved: saved.update(build_config={"input_shape": [1, 8, 2, 10**9]}),
    "no build": lambda saved: saved.pop("build_config"),
    "other class": lambda saved: saved.update(registered_name="keras>Dense"),
    "no class": lambda saved: saved.clear(),
}


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    save_model(model, path := tmp_path_factory.mktemp("good") / "gen.keras", {})
    return path


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_keras_config(tmp_path, good, edit):
    path = edited(good, tmp_path / "gen.keras", edit)
    assert "run" in refused(path, load_saga, path, "gen")


@pytest.mark.parametrize(
    "damage", ["empty", "method 99", "encrypted", "damaged", "nested", "no weights", "junk", "more"]
)
def test_keras_file(tmp_path, good, damage):
    whole, path = good.read_bytes(), tmp_path / "bad.keras"
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    changes = {"no weights": {"model.weights.h5": b""}, "junk": {"model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(900)}}
    changes |= {"nested": {"config.json": b"[" * 100_000}, "more": {"../outside": b"x"}}
    content = {"empty": b"", "method 99": patched(whole, 8, 99), "encrypted": patched(whole, 6, 1)}
    content["damaged"] = damage_middle(packed(parts, zipfile.ZIP_DEFLATED))
    path.write_bytes(content.get(damage) if damage in content else packed(parts | changes[damage]))
    refused(path, load_saga, path, "gen")


def test_weights_that_are_not_finite(tmp_path, good, features):
    model, path = load_saga(good, "gen"), tmp_path / "gen.keras"
    model.classifier.bias.assign([0, np.nan, 0])
    save_model(model, path, {})
    assert "weights are not finite" in refused(path, load_saga, path, "gen")
    rows = usable(read_index(features), features)[:3]
    assert "lower --learning-rate" in refused("", predict, model, Windows(rows))


def test_a_model_that_cannot_be_built_leaves_others_to_load(tmp_path, model, good):
    """Keras keeps the variables of a failed build, and makes them with those of the next model."""
    bad = edited(good, tmp_path / "bad.keras", config_edit(num_classes=10**12))
    with pytest.raises(ValueError, match="could not be loaded"):
        load_model(bad)
    for own, other in zip(load_saga(good, "gen").get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)


def test_more_folds_than_videos(features):
    rows = usable(read_index(features), features)
    assert "make fewer folds" in refused("--fold 1/21", fold_splits, rows, 1, 21, 0)


def test_a_learning_rate_that_is_too_large_is_named(features, tmp_path):
    flags = ["--features", features, "--run", tmp_path, "--limit", 3, "--batch-size", 512, "--epochs", 1]
    flags += ["--learning-rate", 1e20, "--schedule", "constant", "--temporal-blocks", 2]
    assert "lower --learning-rate" in refused("", stage, "02_pretrain_binary", *flags)


# ---------------------------------------------------------------- flags

FLAGS = ["02_pretrain_binary --learning-rate nan", "02_pretrain_binary --seed -1", "02_pretrain_binary --dropout 1"]
FLAGS += ["02_pretrain_binary --batch-size 99999999999", "02_pretrain_binary --train-generators ,"]
FLAGS += ["04_tsigs --batch-size 2147483647", "03_attribute --margin 1e30"]
FLAGS += ["02_pretrain_binary --data-service grpc://h:70000", "02_pretrain_binary --weight-decay inf"]
FLAGS += ["03_attribute --margin nan", "03_attribute --margin inf", "03_attribute --margin 1e39"]
FLAGS += ["03_attribute --ce-weight nan", "03_attribute --seed 99999999999", "04_tsigs --splits ,"]
FLAGS += ["04_tsigs --repeats 0", "05_wild_constrained --tau nan", "05_wild_constrained --l2 inf"]
FLAGS += ["attribute_video --calibrate --seed -1", "attribute_video --enrol K\x1b[31m a.mp4"]
FLAGS += [
    "attribute_video --enrol K\udcff a.mp4"
]  # a name of bytes that are not UTF-8: what is written would not be read
FLAGS += ["05_wild_constrained --wild A=0", "05_wild_constrained --known ,", "simulate_videos --strength nan"]


@pytest.mark.parametrize("command", FLAGS)
def test_flag_out_of_range_is_status_2(command):
    name, *flags = command.split()
    with pytest.raises(SystemExit) as ended:
        module(name).get_args(flags)
    assert ended.value.code == 2


@pytest.mark.parametrize("arguments", [["--out", ""], ["--out="], ["--out", " "]])
def test_empty_argument_is_status_2(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulate_videos.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: pytest.fail("it ran"))
    assert ended.value.code == 2 and "an argument is empty" in capsys.readouterr().err
