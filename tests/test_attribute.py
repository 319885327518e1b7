"""The report on any file: what it says against what the run's own metrics files say, hostile files, pages, exports."""

import contextlib
import csv
import html.parser
import io
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import av
import cv2
import jsonschema
import numpy as np
import pytest
from small import moving, untrained_run, write_clip
from stages import stage

import attribute_video
import common
from attribute_video import attribute
from basics.artifacts import file_digest, read_arrays, read_json, write_arrays
from basics.running import ROOT, InputError, printable
from report import answer as answers
from report import look, scores
from report import run as runs
from report.calibrate import calibrate
from report.outputs import answered, harmless, open_html
from report.text import text_report
from tokens.dataset import read_index, write_index
from tokens.generators import LEVELS

SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "report" / "report.schema.json").read_text()))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


# ---------------------------------------------------------------- a run with random weights


@pytest.fixture(scope="module")
def videos(zoo, tmp_path_factory):
    """The zoo, and six clips of a generator that is outside the table."""
    folder = shutil.copytree(zoo, tmp_path_factory.mktemp("report") / "zoo")
    for i in range(6):
        write_clip(folder / "WildScrape" / f"000{i}.mp4", fps=8, frames=moving(16, seed=i))
    return folder


@pytest.fixture(scope="module")
def features(videos):
    """Of each generator two clips are test and two val."""
    folder = videos.parent / "features"
    stage("01_extract_features", "--videos", videos, "--features", folder, "--pool", 2)
    splits = dict.fromkeys(("0000", "0001"), "test") | dict.fromkeys(("0002", "0003"), "val")
    rows = [row._replace(split=splits.get(Path(row.path).stem, "train")) for row in read_index(folder)]
    write_index(folder / "index-1-of-1.csv", rows)
    return folder


@pytest.fixture(scope="module")
def bare(features):
    """Five levels, not calibrated. Their probabilities are far from even, so that a mistake shows."""
    for level in LEVELS:
        untrained_run(features, features.parent / "bare", level, classifier=4)
    return features.parent / "bare"


@pytest.fixture(scope="module")
def run_folder(bare, features):
    """The same, calibrated; the few val clips allow a rate of one half."""
    folder = shutil.copytree(bare, bare.parent / "run")
    main("--calibrate", "--run", folder, "--features", features, "--false-rejection", 0.5)
    return folder


@pytest.fixture(scope="module")
def run(run_folder):
    return runs.load_run(run_folder)


@pytest.fixture(autouse=True, scope="module")
def models():
    """A model is loaded once, however many folders have it."""
    with pytest.MonkeyPatch.context() as patch:
        loaded, load_saga = {}, runs.load_saga
        patch.setattr(
            runs,
            "load_saga",
            lambda path, level: (
                loaded.get(digest := file_digest(path)) or loaded.setdefault(digest, load_saga(path, level))
            ),
        )
        yield


@pytest.fixture
def loaded(run, monkeypatch):
    """The command need not load the run again."""
    monkeypatch.setattr(runs, "load_run", lambda folder, dtype=None: run)


def main(*arguments):
    return attribute_video.main([str(argument) for argument in arguments])


# ---------------------------------------------------------------- the numbers


def test_report_of_a_file_says_what_the_run_says_of_its_features(videos, bare, features):
    rows = [row for row in read_index(features) if row.generator != "WildScrape"]
    uncalibrated = attribute([videos / row.source for row in rows[::3]], bare)
    for level in LEVELS:
        arrays = read_arrays(bare / f"{level}_embeddings.npz")
        expected = dict(zip(arrays["video"].tolist(), arrays["probabilities"], strict=True))
        classes = read_json(bare / f"{level}.json")["classes"]
        compared = [pair for pair in zip(rows[::3], uncalibrated, strict=True) if pair[0].path in expected]
        assert compared
        for row, report in compared:
            found = report["levels"][level]["probabilities"]
            assert [found[name] for name in classes] == pytest.approx(expected[row.path], abs=0.01)


def test_calibrated_report_adds_up(videos, run, run_folder):
    (report,) = attribute(videos / "SVD" / "0001.mp4", run)
    calibration = read_json(run_folder / "calibration.json")
    (plain,) = attribute(videos / "SVD" / "0001.mp4", run._replace(calibration=None, clips=None, novelty=None))
    for level, own in report["levels"].items():
        assert sum(own["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert list(own["probabilities"].values()) == sorted(own["probabilities"].values(), reverse=True)
        assert own["best"] == next(iter(own["probabilities"])) and own["calibrated"]
        assert sum(own["votes"].values()) == len(own["windows"]) == report["media"]["windows"] == 2
        temperature = calibration["levels"][level]["temperature"]
        powers = {name: p ** (1 / temperature) for name, p in plain["levels"][level]["probabilities"].items()}
        for name, power in powers.items():
            assert own["probabilities"][name] == pytest.approx(power / sum(powers.values()), abs=1e-3)
    generators, team = report["levels"]["gen"]["probabilities"], report["levels"]["team"]["by_generator"]
    assert team["probabilities"]["Stability AI"] == pytest.approx(generators["SVD"], abs=1e-5)
    task = report["levels"]["task"]["by_generator"]
    assert sum(task["probabilities"].values()) + task["not_defined"] == pytest.approx(1, abs=1e-4)
    fake = report["levels"]["bin"]["by_generator"]["probabilities"]["Fake"]
    assert fake == pytest.approx(1 - generators["Real"], abs=1e-4)


def test_training_clip_is_recognised(videos, run):
    known, new = attribute([videos / "SVD" / "0005.mp4", videos / "SVD" / "0001.mp4"], run)
    assert known["nearest"]["clips"][0]["video"] == "SVD/0005.mp4"
    assert any("is nearly, a training clip" in warning for warning in known["warnings"])
    assert not any("is nearly, a training clip" in warning for warning in new["warnings"])


def test_threshold_decides_what_is_an_unknown_generator(videos, run):
    for threshold, answer in ((0.0, answers.UNKNOWN), (1e9, None)):
        own = run.calibration | {"unknown": run.calibration["unknown"] | {"threshold": threshold}}
        (report,) = attribute(videos / "SVD" / "0001.mp4", run._replace(calibration=own))
        level = report["levels"]["gen"]
        assert level["answer"] == (answer or level["best"]) and report["unknown"]["unknown"] == bool(answer)
        assert report["levels"]["bin"]["answer"] == report["levels"]["bin"]["best"]


def test_max_windows_are_spread_over_the_whole_file(tmp_path, run):
    path = write_clip(tmp_path / "long.mp4", fps=8, frames=moving(80))
    (whole,), (some,) = attribute(path, run), attribute(path, run, max_windows=3)
    assert whole["media"]["windows"] == some["media"]["windows"] == 10
    windows = some["levels"]["gen"]["windows"]
    assert [window["start"] for window in windows] == [1, 5, 8]
    for window in windows:
        twin = next(own for own in whole["levels"]["gen"]["windows"] if own["start"] == window["start"])
        assert twin["class"] == window["class"]
        assert twin["probability"] == pytest.approx(window["probability"], abs=1e-3)
    assert any("3 of its 10 windows" in warning for warning in some["warnings"])
    assert [frame["seconds"] for frame in some["explanation"]["frames"]][:2] == [1, 1.125]


def test_equalized_run_equalizes_every_window(videos, tmp_path):
    folder, run = tmp_path / "equalized", tmp_path / "run"
    flags = ["--pool", 2, "--equalize", 256, "--limit", 4]
    stage("01_extract_features", "--videos", videos, "--features", folder, *flags)
    rows = [row._replace(split="test" if "0000" in row.path else "train") for row in read_index(folder)]
    write_index(folder / "index-1-of-1.csv", rows)
    untrained_run(folder, run)
    (report,) = attribute(videos / "SVD" / "0000.mp4", run)
    assert report["media"]["size"] == "128x128" and report["media"]["windows"] == 2
    arrays = read_arrays(run / "gen_embeddings.npz")
    expected = arrays["probabilities"][arrays["video"] == "SVD/0000.mp4"][0]
    assert report["levels"]["gen"]["windows"][0]["probability"] == pytest.approx(expected.max(), abs=0.01)
    assert list(report["levels"]) == ["gen"]
    short = write_clip(tmp_path / "short.mp4", fps=8, frames=moving(5))
    assert "shorter than 1 s" in attribute(short, run)[0]["error"]


# ---------------------------------------------------------------- files of every kind


def still(path, size=(64, 64)):
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    return path


def test_blank_frozen_or_short_file_gives_too_little_evidence(tmp_path, run):
    blank = write_clip(tmp_path / "blank.mp4", fps=8, frames=[np.full((64, 64, 3), 90, np.uint8)] * 16)
    frozen = write_clip(tmp_path / "frozen.mp4", fps=8, frames=moving(1) * 16)
    short = write_clip(tmp_path / "short.mp4", fps=8, frames=moving(5))
    picture = still(tmp_path / "still.png")
    whole = write_clip(tmp_path / "whole.mp4", fps=8, frames=moving(16))
    found = attribute([blank, frozen, short, picture, whole], run)
    told = [" ".join(report["evidence"]["reasons"]) for report in found]
    assert "blank" in told[0] and "frozen" in told[1] and "shorter" in told[2] and "shorter" in told[3] and not told[4]
    for report in found[:4]:
        assert {own["answer"] for own in report["levels"].values()} == {answers.TOO_LITTLE}
        assert report["levels"]["bin"]["best"] in ("Real", "Fake")
    assert found[2]["unknown"] is None and found[2]["explanation"]["map"] is None
    for report in found:
        SCHEMA.validate(json.loads(json.dumps(report)))


def hostile(folder):
    """Files that cannot be answered."""
    data = write_clip(folder / "good.mp4", fps=8, frames=moving(16)).read_bytes()
    files = {"empty.mp4": b"", "text.mp4": b"not a video\n" * 100, "head.mp4": data[:40], "noise.webp": os.urandom(999)}
    files |= {"cut.png": still(folder / "x.png").read_bytes()[:60], "zero.gif": b"GIF89a" + bytes(20)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    bomb = b"BM" + bytes(16) + (60000).to_bytes(4, "little") + (60000).to_bytes(4, "little")
    (folder / "bomb.bmp").write_bytes(bomb + b"\1\0\x18\0" + bytes(40))
    with av.open(str(folder / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    return [folder / name for name in (*files, "bomb.bmp", "sound.mp4", "folder.mp4", "pipe.mp4", "missing.mp4")]


def test_hostile_file_gets_a_reason_and_all_others_are_answered(tmp_path, loaded, capsys):
    bad = [*hostile(tmp_path), Path("/dev/zero")]
    (tmp_path / "x.png").unlink()
    cut = tmp_path / "truncated.mp4"
    whole = write_clip(tmp_path / "whole.mp4", fps=8, frames=moving(200)).read_bytes()
    cut.write_bytes(whole)
    with open(cut, "r+b") as file:  # the index at the end stays, the frames before it do not
        file.seek(len(whole) // 3)
        file.write(bytes(len(whole) // 3))
    good = [tmp_path / "good.mp4", cut, still(tmp_path / "dot.png", (1, 1)), still(tmp_path / "wide.png", (40, 16384))]
    order = [path for pair in zip(bad, [*good, *[None] * len(bad)], strict=False) for path in pair if path]
    with pytest.raises(InputError, match=f"{len(bad)} of {len(order)} files"):
        main(*order, "--json", tmp_path / "out.jsonl", "--csv", tmp_path / "out.csv")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in order]
    for line in lines:
        SCHEMA.validate(line)
        assert (line["error"] is None) == (Path(line["file"]) in good), line
        assert line["error"] is None or 5 < len(line["error"]) < 300
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))) == len(order)
    assert capsys.readouterr().out.count("not answered") == len(bad)


def test_damage_is_in_every_form_of_a_report(tmp_path, loaded, capsys):
    path = tmp_path / "cut.mkv"
    data = write_clip(path, fps=8, frames=moving(80)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    main(path, "--json", tmp_path / "o.jsonl", "--csv", tmp_path / "o.csv", "--html", tmp_path / "o.html")
    line = json.loads((tmp_path / "o.jsonl").read_text())
    SCHEMA.validate(line)
    damage = line["media"]["damage"]
    assert damage.startswith("damaged, read up to ")
    for text in (capsys.readouterr().out, (tmp_path / "o.html").read_text(encoding="utf-8"), line["warnings"][0]):
        assert f"The file is {damage}; what follows was not analysed" in text
    assert next(csv.DictReader((tmp_path / "o.csv").open()))["damage"] == damage


def test_picture_that_stays_is_prepared_and_classified_once(tmp_path, run, monkeypatch):
    """A picture shown for half a minute, then another; the windows are as many as before."""
    prepared, classified = [], []
    encoder, window_outputs = runs.load_encoder(run.features), look.window_outputs
    prepare = encoder.prepare
    monkeypatch.setattr(encoder, "prepare", lambda frame: prepared.append(1) or prepare(frame))
    monkeypatch.setattr(
        look, "window_outputs", lambda model, *more: classified.append(len(more[0])) or window_outputs(model, *more)
    )
    path = write_clip(tmp_path / "still.mp4", frames=moving(2), milliseconds=[0, 30000])
    (report,) = attribute(path, run, encoder)
    assert report["media"]["windows"] == len(report["levels"]["gen"]["windows"]) >= 30
    assert len(prepared) == 2 and max(classified) == 2


def test_file_of_too_many_windows_names_the_remedy(tmp_path, run, monkeypatch):
    monkeypatch.setattr(look, "MOST_WINDOWS", 3)
    path = write_clip(tmp_path / "long.mp4", fps=8, frames=moving(40))
    (refused,), (answered,) = attribute(path, run), attribute(path, run, max_windows=4)
    assert refused["error"] == "5 windows, more than 3; choose how many by --max-windows" and not answered["error"]


def test_files_of_many_formats_are_answered(tmp_path, run):
    frames = moving(16)
    for suffix in ("webm", "gif", "avi"):
        write_clip(tmp_path / f"clip.{suffix}", fps=8, frames=frames)
    animation = cv2.Animation()
    animation.frames, animation.durations = [cv2.cvtColor(f, cv2.COLOR_RGB2BGRA) for f in frames], [125] * 16
    cv2.imwriteanimation(str(tmp_path / "clip.webp"), animation)
    found = attribute(tmp_path, run)
    assert [Path(report["file"]).name for report in found] == ["clip.avi", "clip.gif", "clip.webm", "clip.webp"]
    codecs = [(report["media"]["codec"], report["media"]["windows"]) for report in found]
    assert codecs == [("mpeg4", 2), ("gif", 3), ("vp9", 2), ("webp", 2)]  # gif's 0.125 s are 0.13
    for report in found:
        SCHEMA.validate(json.loads(json.dumps(report)))


@pytest.mark.parametrize(
    "error, words",
    [(None, "present"), ("ManifestNotFound", "absent"), ("NotSupported", "not checked: what is this")]
    + [("a name that it cannot encode", "not checked: what is this")],
)
def test_c2pa_manifest_is_looked_for_in_the_file_alone(tmp_path, monkeypatch, error, words):
    """Stands in for c2pa-python, which need not be installed."""
    asked = []

    class C2paError(Exception):
        pass

    for name in ("ManifestNotFound", "NotSupported"):
        setattr(C2paError, name, type(name, (C2paError,), {}))

    def reader(path, context):
        if error:
            raise getattr(C2paError, error, ValueError)("what\nis this")
        return contextlib.nullcontext()

    context = types.SimpleNamespace(from_dict=asked.append)
    module = types.SimpleNamespace(C2paError=C2paError, Reader=reader, Context=context)
    monkeypatch.setitem(sys.modules, "c2pa", module)
    assert look.c2pa_state(tmp_path / "a.mp4").startswith(words)
    assert asked == [{"verify": {"remote_manifest_fetch": False}}]
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert "not installed" in look.c2pa_state(tmp_path / "a.mp4")


NASTY = "=a'b\"c<script>alert(1)&\n\x1b[31m日本ж.mp4"


def test_name_of_a_file_is_only_shown(tmp_path, loaded, capsys, monkeypatch):
    path = tmp_path / NASTY
    shutil.copy(write_clip(tmp_path / "plain.mp4", fps=8, frames=moving(16)), path)
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/not-\xff-utf8.mp4")
    shutil.copy(tmp_path / "plain.mp4", broken)
    monkeypatch.chdir(tmp_path)
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("jsonl", "csv", "html")]
    kinds = zip(("--json", "--csv", "--html"), outputs, strict=True)
    main(path.name, broken, *(part for kind in kinds for part in kind))
    assert json.loads(outputs[0].read_text().splitlines()[0])["file"] == path.name
    assert "�" in json.loads(outputs[0].read_text().splitlines()[1])["file"]
    with open(outputs[1], newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["file"] == f"'{path.name}"
    page = outputs[2].read_text(encoding="utf-8")
    assert "<script" not in page and "\x1b" not in page and "&lt;script&gt;" in page and "日本ж" in page
    assert "\x1b" not in capsys.readouterr().out


def test_cell_is_never_a_formula():
    for text in ("=1+1", "+1", "-1", "@a", "\tx"):
        assert harmless(text) == f"'{text}"
    assert harmless("a=b") == "a=b" and harmless(-1.5) == -1.5
    assert printable("a\x1b\n\u202e\x00é日") == "a\\x1b\\n\\u202e\\x00é日"


# ---------------------------------------------------------------- warnings


def test_weak_runs_and_files_get_warnings(tmp_path, run, bare, videos):
    clip = write_clip(tmp_path / "large.mp4", fps=5, frames=moving(16, size=96))
    (told,) = attribute(clip, run)
    (plain,) = attribute(videos / "SVD" / "0001.mp4", bare)
    words = " ".join(told["warnings"])
    for what in ("simulated", "few clips", "96 px wide (training clips: 128 to 128)", "5 frames a second (24 to 24)"):
        assert what in words
    assert "not clearly above chance" in words  # the weights are random
    assert "not calibrated" in " ".join(plain["warnings"]) and plain["nearest"] is None and plain["unknown"] is None
    assert all(own["by_generator"] is None and not own["calibrated"] for own in plain["levels"].values())
    assert plain["run"]["data"] == told["run"]["data"] == "features"


def test_disagreement_is_reported_with_the_model_to_trust(videos, run):
    (found,) = attribute(videos / "SVD" / "0001.mp4", run)
    summed = {"best": "Other", "agrees": False, "probabilities": {"Other": 0.7}, "not_defined": 0.1}
    counts = {"clips": 300, "differ": 24, "own_right": 18, "generator_right": 6}
    sentences = {"own": "trust the level's model", "generator": "trust the generator's sums", None: "neither"}
    for trust, words in sentences.items():
        found["levels"]["team"]["by_generator"] = summed | {"measured": counts | {"trust": trust}}
        text = text_report(found)
        assert words in text and "correct on 18, the sums on 6" in text and "not defined 0.10" in text
    found["levels"]["team"]["by_generator"] |= {"agrees": None, "not_defined": 0.9}
    assert "TEAM-L: the level's model predicts" not in text_report(found)


def test_generator_without_a_version_adds_to_none(videos, run):
    """Pika's Stable Diffusion version is Unknown: where Pika is likeliest, its share is no vote for another version."""
    (found,) = attribute(videos / "SVD" / "0001.mp4", run)
    levels = found["levels"]
    levels["gen"]["probabilities"] = {"Real": 0.1, "SVD": 0.1, "Pika": 0.7, "ModelScope": 0.1}
    answers.add_generator_sums(levels, run)
    sd = levels["sd"]["by_generator"]
    assert sd["not_defined"] == pytest.approx(0.7) and sd["agrees"] is None
    assert sd["probabilities"] == {"SD 2.1": pytest.approx(0.2), "Real": pytest.approx(0.1)}
    assert levels["bin"]["by_generator"]["best"] == "Fake" and levels["bin"]["by_generator"]["not_defined"] == 0


# ---------------------------------------------------------------- the command


def test_list_on_standard_input_is_answered_line_by_line(run_folder, videos, monkeypatch):
    """A file is answered before the next is named."""
    source, sink = os.pipe()
    said = queue.Queue()
    monkeypatch.setattr(sys, "stdin", os.fdopen(source, encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(write=said.put, flush=lambda: None))

    def command():
        with pytest.raises(InputError, match="1 of 3 files could not be read"):
            main("-", "--run", run_folder, "--json", "-")
        said.put("ended")

    thread = threading.Thread(target=command)
    thread.start()
    with os.fdopen(sink, "wb", buffering=0) as names:
        for name in ("SVD/0001.mp4", "Pika/0002.mp4"):
            names.write(f"{videos / name}\n".encode())
            assert json.loads(said.get(timeout=60))["file"].endswith(name)
        names.write(b"nowhere.mp4\n")
    assert json.loads(said.get(timeout=60))["error"] and said.get(timeout=60) == "ended"
    thread.join()


def test_resumed_list_keeps_answers_and_tries_failures_again(loaded, videos, tmp_path):
    clips, out = [videos / "SVD" / f"000{i}.mp4" for i in range(3)], tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="1 of 2"):
        main(clips[0], tmp_path / "late.mp4", "--json", out)
    kept = out.read_text().splitlines()[0]
    out.write_text(out.read_text() + kept[:500])  # interrupted while it wrote
    shutil.copy(clips[2], tmp_path / "late.mp4")
    assert main(clips[0], tmp_path / "late.mp4", clips[1], "--json", out, "--resume") == 2
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in (clips[0], tmp_path / "late.mp4", clips[1])]
    assert out.read_text().splitlines()[0] == kept and not any(line["error"] for line in lines)
    for content in (b'{"a": 1}\n', b"my notes\nand more\n", b'{\n "file": 1\n}\n', b"\xff\xfe\n"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(InputError, match="holds no reports"):
            answered(tmp_path / "other")
        assert (tmp_path / "other").read_bytes() == content


@pytest.mark.parametrize(
    "wrong",
    [
        "a.mp4 --resume",
        "a.mp4 --resume --json a --csv b",
        "",
        "a.mp4 --calibrate",
        "a.mp4 --export x.zip",
        "a.mp4 --max-windows 0",
        "a.mp4 --score energy",
        "a.mp4 --false-rejection 0.1",
        "a.mp4 --method neighbours",
        "a.mp4 --limit 5",
        "a.mp4 --max-files 0",
        "a.mp4 --batch-size 8",
        "--enrol Kling",
        "a.mp4 --enrol Kling --json x",
        "--enrol Kling --export x.zip",
    ],
)
def test_arguments_that_do_not_go_together_end_with_status_2(wrong):
    with pytest.raises(SystemExit) as stop:
        attribute_video.get_args(wrong.split())
    assert stop.value.code == 2


def test_command_offers_the_scores_and_namings_that_there_are():
    assert tuple(scores.SCORES) == attribute_video.SCORES and tuple(scores.NAMINGS) == attribute_video.NAMINGS


def test_max_files_limits_the_files_read(videos, loaded, tmp_path):
    assert main(videos / "SVD", videos / "Pika", "--max-files", 2, "--json", tmp_path / "r.jsonl") == 2
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2


def test_missing_and_damaged_runs_raise(tmp_path, bare, run_folder, features):
    for path, words in ((tmp_path / "no", "no such folder"), (tmp_path, "no <level>.keras"), (__file__, "neither a")):
        with pytest.raises(InputError, match=words):
            runs.load_run(path)
    damaged = shutil.copytree(run_folder, tmp_path / "damaged")
    (damaged / "sd.keras").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(InputError, match="sd.keras"):
        runs.load_run(damaged)
    shutil.copy(bare / "team.keras", damaged / "sd.keras")  # another model than was calibrated
    with pytest.raises(InputError, match="other models"):
        runs.load_run(damaged)
    shutil.copy(bare / "sd.keras", damaged / "sd.keras")
    (damaged / "calibration.npz").write_bytes(b"junk")
    with pytest.raises(InputError, match="calibration.npz: damaged.*--calibrate"):
        runs.load_run(damaged)
    (damaged / "calibration.npz").unlink()
    with pytest.raises(InputError, match="calibration.npz is missing"):
        runs.load_run(damaged)
    (damaged / "calibration.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        runs.load_run(damaged)
    with pytest.raises(InputError, match="not calibrated"):
        runs.export_run(bare, tmp_path / "x.zip")


NAN, NOTHING = float("nan"), {"levels": {}}
EDITS = {
    "calibration.json": [
        *({"levels": value} for value in ({}, [], None)),
        *({"unknown": value} for value in ({}, None, [])),
        *({"unknown.threshold": value} for value in ("x", NAN, float("inf"), [1])),
        *({"unknown.score": value} for value in ("unheard of", None, 1)),
        *({"nearest": value} for value in ({}, None)),
        *({"levels.gen.temperature": value} for value in (NAN, -1, 0, 1e-300, "x", True)),
        {"levels.team.agreement": {"clips": 1}},
        *({"taxonomy": value} for value in ({}, None, {"Real": {"bin": "Real"}})),
        {"taxonomy.Real.sd": None},
        {"trained_on.width": None},
        {"trained_on.width": [1]},
        {"models": []},
    ],
    "gen.json": [{"accuracy_interval": None}, {"macro_accuracy": "x"}, {"majority": NAN}, {"recipe": []}],
}


def edited(content, change):
    """A copy of JSON in which values at dotted paths are others."""
    copy = json.loads(json.dumps(content))
    for path, value in change.items():
        *above, last = path.split(".")
        part = copy
        for key in above:
            part = part[key]
        part[last] = value
    return copy


def test_edited_json_of_a_run_is_refused_by_its_name(run_folder, tmp_path):
    damaged = shutil.copytree(run_folder, tmp_path / "run")
    for name, changes in EDITS.items():
        whole = read_json(damaged / name)
        texts = [json.dumps(edited(whole, change)) for change in changes]
        for text in [*texts, "[" * 10**5, "[]", "null", "\xff", ""]:
            (damaged / name).write_text(text, encoding="latin-1")
            with pytest.raises(InputError, match=name) as raised:
                runs.load_run(damaged)
            assert len(str(raised.value).splitlines()) == 1, text
        (damaged / name).write_text(json.dumps(whole))
    assert runs.load_run(damaged)


def test_edited_arrays_of_a_run_are_refused_by_their_name(run_folder, tmp_path):
    damaged = shutil.copytree(run_folder, tmp_path / "run")
    path = damaged / "calibration.npz"
    whole = read_arrays(path)
    changes = [{key: whole[key][1:]} for key in ("embedding", "label", "maps", "window_time", "signatures")]
    changes += [{key: whole[key][:, 1:]} for key in ("embedding", "logits", "maps", "window_embedding")]
    changes += [{key: np.full_like(whole[key], np.nan)} for key in ("embedding", "logits", "window_time")]
    changes += [{"window_clip": values} for values in (whole["window_clip"] + 10**6, whole["window_clip"] - 1)]
    changes += [
        {"window_clip": np.float64(whole["window_clip"])},
        {"window_embedding": np.float32(1e30) + whole["embedding"]},
    ]
    changes += [{"maps": np.full_like(whole["maps"], np.nan)}, {"label": np.arange(len(whole["label"]))}]
    for change in changes:
        write_arrays(path, whole | change)
        with pytest.raises(InputError, match="calibration.npz.*--calibrate") as raised:
            runs.load_run(damaged)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changed", [{"fps": -1}, {"fps": 0}, {"fps": "8"}, {"fps": 1e9}, {"frames": 4}, {"dim": 9}, None]
)
def test_recipe_within_a_model_that_cannot_be_is_refused(bare, tmp_path, changed):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(bare / "gen.json", folder)
    model = runs.load_saga(bare / "gen.keras", "gen")
    features = {} if changed is None else model.config["features"] | changed
    runs.build_saga(**model.config | {"features": features}).save(folder / "gen.keras")
    with pytest.raises(InputError, match=r"gen.keras.*03_attribute.py again"):
        runs.load_run(folder)


def test_run_of_links_folders_and_pipes(run_folder, videos, tmp_path):
    """Links to files are followed, as in a cache of downloads; nothing waits for a pipe."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in run_folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert runs.load_run(linked).calibration
    (linked / "sd.keras").unlink()
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)):
        make(linked / "sd.keras")
        with pytest.raises(InputError, match="sd.keras: not a regular file"):
            runs.load_run(linked)
        shutil.move(linked / "sd.keras", tmp_path / f"{len(list(tmp_path.iterdir()))}")
    os.mkfifo(tmp_path / "run.zip")
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        runs.load_run(tmp_path / "run.zip")


def test_failed_load_leaves_the_process_able_to_load(bare, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_saga", common.load_saga)  # not what was loaded before
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("gen.keras", "gen.json"):
        shutil.copy(bare / name, folder)
    with zipfile.ZipFile(bare / "gen.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    for wrong in ({"num_classes": 10**9}, {"frames": 0}, {"heads": 0}, {"dim": "x"}, {"class_names": ["Real"]}):
        config["config"] |= wrong
        with zipfile.ZipFile(folder / "gen.keras", "w") as archive:
            for name, content in (members | {"config.json": json.dumps(config).encode()}).items():
                archive.writestr(name, content)
        with pytest.raises(InputError, match="gen.keras"):
            attribute(videos / "SVD" / "0001.mp4", folder)
        config = json.loads(members["config.json"])
    shutil.copy(bare / "gen.keras", folder / "gen.keras")
    (report,) = attribute(videos / "SVD" / "0001.mp4", folder)
    assert report["error"] is None


def test_numbers_that_are_not_finite_are_no_answer(run, videos, monkeypatch):
    monkeypatch.setattr(look, "window_outputs", lambda *given: {"logits": np.full((2, 4), np.nan)})
    (report,) = attribute(videos / "SVD" / "0001.mp4", run)
    assert report == {
        "version": 1,
        "file": report["file"],
        "error": "the run's models give numbers that are not finite",
    }


def test_calibrating_on_other_features_raises(bare, features, tmp_path):
    other = shutil.copytree(features, tmp_path / "features")
    recipe = read_json(other / "recipe.json")
    (other / "recipe.json").write_text(json.dumps(recipe | {"fps": 4}))
    with pytest.raises(InputError, match=r"other features.*\(fps\)"):
        calibrate(bare, other)
    rows = [row for row in read_index(features) if row.path != "SVD/0005.mp4"]
    (other / "recipe.json").write_text(json.dumps(recipe))
    write_index(other / "index-1-of-1.csv", rows)
    with pytest.raises(InputError, match="lacks SVD/0005.mp4"):
        calibrate(bare, other)
    with pytest.raises(InputError, match="wants the folder"):
        calibrate(tmp_path / "nowhere", features)


def test_levels_on_different_features_are_refused(bare, tmp_path):
    mixed = shutil.copytree(bare, tmp_path / "mixed")
    model = runs.load_saga(bare / "sd.keras", "sd")
    config = model.config | {"features": model.config["features"] | {"pool": 1}}
    runs.build_saga(**config).save(mixed / "sd.keras")
    with pytest.raises(InputError, match="different features"):
        runs.load_run(mixed)


def test_calibration_without_val_clips_has_no_temperature_and_no_threshold(bare, features, tmp_path):
    copy = shutil.copytree(bare, tmp_path / "run")
    for level in LEVELS:
        arrays = read_arrays(copy / f"{level}_embeddings.npz")
        arrays["split"] = np.where(arrays["split"] == "val", "train", arrays["split"])
        write_arrays(copy / f"{level}_embeddings.npz", arrays)
    found = calibrate(copy, features)
    assert all(level["temperature"] is None for level in found["levels"].values())
    assert found["unknown"]["threshold"] is None and found["nearest"]["split"] == "test"
    run = runs.load_run(copy)
    assert run.novelty is None
    words = " ".join(answers.run_warnings(run))
    assert "There are no val clips" in words and "Too few val clips (0)" in words


# ---------------------------------------------------------------- the experiment on held-out files


def test_experiment_scores_the_clips_and_answers_of_the_run(bare, features, videos, tmp_path, monkeypatch):
    from experiments import datasets, report_accuracy

    args = types.SimpleNamespace(seeds=1, run=str(tmp_path / "runs"), encoder_weights=None)
    data = datasets.Data("f", features, (None,), 5, {}, "digest", videos)
    monkeypatch.setattr(report_accuracy, "new_generators", lambda data: (["WildScrape"], ()))
    monkeypatch.setattr(report_accuracy, "train_arm", lambda *arguments: [bare])
    results = report_accuracy.measure_report(args, data)
    (seed,) = results["seeds"]
    for level in LEVELS[1:]:
        metrics = read_json(bare / f"{level}.json")
        for key, name in (("videos", "videos"), ("micro", "accuracy"), ("majority", "majority")):
            assert seed["levels"][level][key] == pytest.approx(metrics[name])
    # BIN-L, which trains on any fake, is reported of the same files
    assert seed["levels"]["bin"]["videos"] == seed["levels"]["gen"]["videos"]
    outside = sum(row.generator == "WildScrape" for row in read_index(features))
    assert seed["called_unknown"]["WildScrape"][0] == outside == 6
    assert seed["files"] == outside + seed["levels"]["bin"]["videos"] and seed["too_little"] == 0
    lines = report_accuracy.render_report(json.loads(json.dumps(results)))
    assert sum(line.startswith(("| BIN-L", "| GEN-L")) for line in lines) == 4
    assert any(line.startswith("| WildScrape |") for line in lines) and not any("nan" in line for line in lines)
    with pytest.raises(InputError, match="--videos"):
        report_accuracy.measure_report(args, data._replace(videos=None))


def test_clip_is_test_in_one_fold_and_val_in_the_one_before(features):
    from experiments import datasets, report_accuracy

    data = datasets.Data("f", features, ("1/3", "2/3", "3/3"), 5, {}, "digest", None)
    folds = [read_index(part.features) for part in report_accuracy.fold_data(data, seed=0)]
    tested = [row.path for rows in folds for row in rows if row.split == "test"]
    assert len(tested) == len(set(tested)) >= 0.9 * len(folds[0])
    for rows, after in zip(folds, [*folds[1:], folds[0]], strict=True):
        test = {row.path for row in after if row.split == "test"}
        assert {row.path for row in rows if row.split == "val"} == test
        assert {row.split for row in rows} == {"train", "val", "test"}


# ---------------------------------------------------------------- a run carried away


def test_exported_run_answers_alike(run, run_folder, videos, tmp_path, monkeypatch):
    runs.export_run(run_folder, tmp_path / "run.zip")
    runs.export_run(run_folder, tmp_path / "exported")
    clip = videos / "SVD" / "0001.mp4"
    (expected,) = attribute(clip, run)
    (found,) = attribute(clip, tmp_path / "run.zip")
    assert found["levels"] == expected["levels"] and found["nearest"] == expected["nearest"]
    card = (tmp_path / "exported" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: keras") and "Limits" in card and card.count("\n| ") == 6
    assert "**Trained on simulated clips" in card and "- GEN-L: Real, SVD, Pika, ModelScope\n" in card
    assert "on test it rejects" in card and "Unseen generators rejected: WildScrape" in card
    files = {file.name: file.read_bytes() for file in (tmp_path / "exported").iterdir()}
    assert set(files) == set(runs.FILES)
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(name) or str(tmp_path / "hub")
    )
    monkeypatch.setattr("kagglehub.model_download", lambda name: asked.append(name) or str(tmp_path / "hub"))
    for handle in ("hf://somebody/run", "kaggle://somebody/run/keras/one"):
        with runs.opened(handle) as folder:
            assert folder == tmp_path / "hub"
    assert asked == ["somebody/run", "somebody/run/keras/one"]
    with pytest.raises(InputError, match="other files"):
        runs.export_run(run_folder, videos)


@pytest.mark.parametrize("wrong", ["twice", "encrypted", "link", "shrunk", "file", "run"])
def test_zip_of_a_run_is_bounded_before_it_is_unpacked(tmp_path, wrong, monkeypatch):
    path, folder = tmp_path / "run.zip", tmp_path / "out"
    folder.mkdir()
    link = zipfile.ZipInfo("gen.json")
    link.external_attr = 0o120777 << 16
    monkeypatch.setattr(runs, "MOST_OF_RUN", 2500)
    monkeypatch.setattr(runs, "MOST_OF_FILE", runs.MOST_OF_FILE | {".json": 1500})
    sizes = {"file": 2000, "shrunk": 10**6}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", b"x" * 10**6, zipfile.ZIP_DEFLATED)  # which is not read
        for name in ("bin.keras", "gen.keras", "sd.keras")[: 3 if wrong == "run" else 1]:
            archive.writestr(name, b"x" * sizes.get(wrong, 900), zipfile.ZIP_DEFLATED if wrong == "shrunk" else None)
        archive.writestr(link if wrong == "link" else "gen.json", b"{" * sizes.get(wrong, 9))
        if wrong == "twice":
            archive.writestr("sub/gen.json", b"[")
    if wrong == "encrypted":
        data = bytearray(path.read_bytes())
        for magic, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
            data[data.rindex(magic) + place] |= 1
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"run.zip: damaged zip \(.*; export the run again"):
        runs.unpack(path, folder)
    assert not list(folder.iterdir())


def test_zip_writes_the_files_of_a_run_alone(tmp_path):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        for name in ("gen.json", "within/gen.keras", "../../evil.txt", "/tmp/evil.py"):
            archive.writestr(name, "x" * 999)
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    runs.unpack(tmp_path / "run.zip", folder)
    assert {file.name for file in folder.iterdir()} == {"gen.json", "gen.keras"}
    assert not (tmp_path / "evil.txt").exists()
    data = (tmp_path / "run.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cut.zip"):
        runs.load_run(tmp_path / "cut.zip")
    (tmp_path / "bad.zip").write_bytes(data.replace(b"x" * 999, b"y" * 999, 1))
    with pytest.raises(InputError, match="bad.zip: damaged zip.*export the run again"):
        runs.load_run(tmp_path / "bad.zip")


def test_unavailable_handle_raises_with_the_remedy(monkeypatch):
    def refuse(*args, **more):
        raise OSError("no network\nhere")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(InputError, match="no network here.*--run FOLDER"):
        runs.load_run("hf://somebody/run")
    with pytest.raises(InputError, match="begin with"):
        runs.load_run("s3://bucket/run")


# ---------------------------------------------------------------- the page


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(videos, run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    nasty = path.parent / NASTY
    shutil.copy(videos / "SVD" / "0002.mp4", nasty)
    with open_html(path) as write:
        for report in attribute([videos / "SVD" / "0001.mp4", nasty, "/dev/zero"], run, images=True):
            write(report)
    return path


def test_page_needs_nothing_else_and_can_be_read_aloud(page):
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("href", "src"):
                assert value.startswith(("#", "data:image/jpeg;base64,"))
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in found.of("meta")[2]["content"]
    assert found.of("html")[0]["lang"] == "en" and "viewport" in {meta.get("name") for meta in found.of("meta")}
    assert len(found.of("h1")) == len(found.of("main")) == 1 and len(found.of("article")) == len(found.of("h2")) == 3
    assert len(found.of("img")) == 16 and all(image["alt"] for image in found.of("img"))
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in found.of("svg"))
    assert len(found.of("svg")) == 2 * (len(LEVELS) + 3)  # votes by level, three attention maps
    assert all(head["scope"] in ("col", "row") for head in found.of("th"))
    assert len(found.of("caption")) == len(found.of("table")) == 5
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and all(link["href"][1:] in ids for link in found.of("a"))


def test_page_without_jinja_raises_before_anything_is_read(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match="pip install jinja2"), open_html(tmp_path / "page.html"):
        pass
    with pytest.raises(InputError, match="pip install jinja2"):
        runs.export_run(run_folder, tmp_path / "run.zip")
    assert not list(tmp_path.iterdir())


MEASURE = """<script>document.body.style.cssText = "margin: 0; width: WIDTHpx";
const wide = [...document.querySelectorAll("body *")].filter(
  x => x.getBoundingClientRect().right > WIDTH + 1 && !x.closest("thead")).map(x => x.tagName);
const ink = getComputedStyle(document.body);
document.title = JSON.stringify({wide,
  paper: ink.backgroundColor, ink: ink.color, articles: document.querySelectorAll("article").length});</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("width, dark", [(340, False), (1000, True)])
def test_page_fits_and_is_dark_in_a_dark_browser(page, tmp_path, width, dark):
    """The window of a headless browser is at least 500 px wide, so the body is made as narrow as a phone."""
    copy = tmp_path / "copy.html"
    text = page.read_text(encoding="utf-8")
    policy = text[text.index('<meta http-equiv="Content') : text.index("<title>")]
    copy.write_text(text.replace(policy, "").replace("</body>", MEASURE.replace("WIDTH", f"{width}") + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-quic", "--disable-sync", "--disable-component-update"]
    flags += [f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={max(width, 500)},900"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, f"file://{copy}"], capture_output=True, text=True, timeout=120)
    title = done.stdout[done.stdout.index("<title>") + 7 : done.stdout.index("</title>")].replace("&amp;", "&")
    found = json.loads(title)
    assert found["wide"] == [] and found["articles"] == 3
    colours = [sum(map(int, found[key][4:-1].split(","))) for key in ("paper", "ink")]
    assert (colours[0] < colours[1]) == dark
