"""01: features of every video under the right name, label and split, whatever else is in the folder."""

import csv
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import SHARED
from small import numbered, write_clip
from stages import module, stage

from basics.artifacts import read_arrays, read_json, write_atomically, write_csv
from basics.running import ROOT, InputError, run_script
from tokens.dataset import map_tokens, read_index

CORPUS = SHARED / "corpus"


def extract(*arguments):
    return stage("01_extract_features", *arguments)


def write_table(path, videos, **columns):
    """A CSV that names videos (file, generator), each with more columns of one value."""
    rows = [dict(path=file, generator=generator, **columns) for file, generator in videos]
    write_csv(path, ("path", "generator", *columns), rows)
    return path


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.npz")}


# ---------------------------------------------------------------- features, index, recipe


@pytest.fixture(scope="module")
def long_clips(clips, tmp_path_factory):
    """The session's nine clips of a window each, and three of a generator outside the table, 1 to 3 windows each."""
    root = tmp_path_factory.mktemp("long")
    for folder in clips.iterdir():
        (root / folder.name).symlink_to(folder)
    for i in range(3):
        write_clip(root / "New one" / f"{i}.mp4", 10 + 25 * i)
    return root


def test_features_index_and_recipe_are_as_promised(long_clips, tmp_path, capsys):
    features = ["--videos", long_clips, "--features", tmp_path, "--pool", 2]
    counts = extract(*features)
    assert (counts["videos"], counts["windows"], counts["failed"], counts["skipped"]) == (12, 9 + 1 + 2 + 3, 0, 0)
    rows = read_index(tmp_path)
    assert [row.path for row in rows] == sorted(row.source for row in rows) and len(rows) == 12
    for row in rows:
        with np.load(tmp_path / f"{row.path}.npz") as arrays:
            assert arrays["tokens"].shape == (row.windows, 8, 4, 144) and arrays["tokens"].dtype == np.float16
            assert arrays["times"].shape == arrays["valid"].shape == (row.windows, 8)
            assert arrays["valid"].sum() == math.ceil(float(row.length) * 8 - 1e-3)
        assert (row.size, row.codec, row.error) == ("64x32", "h264", "")
        assert float(row.fps) == pytest.approx(24, abs=0.1) and row.path.endswith(row.container)
    printed = capsys.readouterr().out
    assert "known: New one,,Unknown,Unknown,Unknown" in printed and "to encode: 12 videos" in printed
    recipe = read_json(tmp_path / "recipe.json")
    assert [recipe[key] for key in ("encoder", "frames", "tokens", "dim", "simulated")] == ["dct", 8, 4, 144, False]


def test_a_second_run_makes_only_what_is_missing(clips, tmp_path):
    features = ["--videos", clips, "--features", tmp_path, "--pool", 2]
    extract(*features)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    index = (tmp_path / "index-1-of-1.csv").read_bytes()
    next(iter(made)).unlink()
    again = extract(*features)
    assert (again["videos"], again["skipped"]) == (1, 8)
    changed = [path for path, when in made.items() if path.stat().st_mtime_ns != when]
    assert changed == [next(iter(made))] and (tmp_path / "index-1-of-1.csv").read_bytes() == index


def test_video_that_was_made_again_is_extracted_again(tmp_path):
    for i in range(3):
        write_clip(tmp_path / "videos" / "SVD" / f"{i}.mp4")
    place = ["--videos", tmp_path / "videos", "--features", tmp_path / "f"]
    extract(*place)
    before = map_tokens(tmp_path / "f" / "SVD" / "1.mp4.npz").copy()
    later = time.time() + 5
    write_clip(tmp_path / "videos" / "SVD" / "1.mp4", count=16)
    os.utime(tmp_path / "videos" / "SVD" / "1.mp4", (later, later))
    assert extract(*place)["videos"] == 1
    assert map_tokens(tmp_path / "f" / "SVD" / "1.mp4.npz").shape != before.shape or not np.array_equal(
        map_tokens(tmp_path / "f" / "SVD" / "1.mp4.npz"), before
    )


def test_shards_of_other_code_are_never_mixed(clips, tmp_path, monkeypatch):
    place = ["--videos", clips, "--features", tmp_path, "--pool", 2]
    extract(*place, "--shard", "1/2")
    extract(*place, "--shard", "2/2")
    assert len(read_index(tmp_path)) == 9
    script, code = module("01_extract_features"), {"tokens/encoders.py:BlockDCT": "another"}
    monkeypatch.setattr(script, "code_of", lambda *starts: code)
    with pytest.raises(InputError, match="made by other code .*--overwrite"):
        extract(*place, "--shard", "1/2")
    extract(*place, "--shard", "1/2", "--overwrite")
    with pytest.raises(InputError, match="2"):  # the second part is still to be made
        read_index(tmp_path)


def test_file_whose_features_cannot_be_written_is_an_error_of_its_own(clips, tmp_path):
    videos = Path(shutil.copytree(clips, tmp_path / "videos"))
    (videos / "SVD" / "0.mp4").rename(videos / "SVD" / f"{'a' * 248}.mp4")
    with pytest.raises(InputError, match="1 of 9 videos could not be read"):
        extract("--videos", videos, "--features", tmp_path / "f")
    assert sum(row.windows > 0 for row in read_index(tmp_path / "f")) == 8
    (row,) = [row for row in read_index(tmp_path / "f") if row.error]
    assert "cannot be written" in row.error and row.windows == 0


def test_features_made_in_another_way_are_refused_or_overwritten(clips, tmp_path):
    place = ["--videos", clips, "--features", tmp_path]
    extract(*place, "--pool", 2)
    with pytest.raises(InputError, match="other settings .pool, tokens.*--overwrite"):
        extract(*place)
    assert extract(*place, "--overwrite", "--limit", 1)["videos"] == 3
    assert len(read_index(tmp_path)) == 3


def test_clips_of_another_recipe_are_made_again(clips, tmp_path):
    place = ["--videos", clips, "--features", tmp_path]
    extract(*place, "--pool", 2)
    extract(*place, "--overwrite", "--limit", 1)
    again = extract(*place)
    assert (again["videos"], again["skipped"]) == (6, 3)
    assert {read_arrays(file)["tokens"].shape for file in tmp_path.rglob("*.npz")} == {(1, 8, 16, 144)}


def test_a_recorded_split_is_kept_when_videos_are_added(clips, tmp_path):
    videos = [(file, file.parent.name) for file in sorted(clips.glob("*/*"))]
    extract("--videos", write_table(tmp_path / "set.csv", videos[:4], split="test"), "--features", tmp_path / "f")
    recorded = {row.path for row in read_index(tmp_path / "f")}
    assert extract("--videos", write_table(tmp_path / "set.csv", videos), "--features", tmp_path / "f")["videos"] == 5
    rows = read_index(tmp_path / "f")
    assert {row.split for row in rows if row.path in recorded} == {"test"}
    assert {row.split for row in rows if row.path not in recorded} > {"train"}


def test_a_csv_gives_extracted_videos_another_split(clips, tmp_path):
    videos = [(file, file.parent.name) for file in sorted(clips.glob("*/*"))]
    extract("--videos", write_table(tmp_path / "set.csv", videos, split=""), "--features", tmp_path / "f")
    write_table(tmp_path / "set.csv", videos, split="val")
    assert extract("--videos", tmp_path / "set.csv", "--features", tmp_path / "f")["videos"] == 0
    assert {row.split for row in read_index(tmp_path / "f")} == {"val"}


def test_an_index_that_lacks_a_column_raises(clips, tmp_path):
    extract("--videos", clips, "--features", tmp_path, "--limit", 1, "--pool", 4)
    path = tmp_path / "index-1-of-1.csv"
    lines = list(csv.reader(path.read_text().splitlines()))
    place = lines[0].index("codec")
    path.write_text("\n".join(",".join(line[:place] + line[place + 1 :]) for line in lines) + "\n")
    with pytest.raises(InputError, match=r"index-1-of-1\.csv: missing column\(s\) codec; run 01 again"):
        read_index(tmp_path)


def test_two_processes_of_one_number_write_files_of_their_own(tmp_path, monkeypatch):
    """Containers on one file system may all be process 1: what one writes must not be moved away by another."""
    monkeypatch.setattr(os, "getpid", lambda: 1)

    def write(temporary):
        temporary.write_text("outer")
        write_atomically(tmp_path / "a", lambda inner: inner.write_text("inner"))

    write_atomically(tmp_path / "a", write)
    assert (tmp_path / "a").read_text() == "outer"


# ---------------------------------------------------------------- the index is what the files say


def paths(features):
    return [row.path for row in read_index(features)]


def movable(clips, folder):
    """A copy of the nine clips that may be changed, and where its features go."""
    shutil.copytree(clips, folder / "videos")
    return folder / "videos", ["--videos", folder / "videos", "--features", folder / "f", "--pool", 4]


def test_an_index_is_made_again_from_the_clips(clips, tmp_path):
    place = ["--videos", clips, "--features", tmp_path, "--pool", 4]
    extract(*place)
    index = tmp_path / "index-1-of-1.csv"
    before = index.read_bytes()
    index.unlink()
    assert extract(*place)["videos"] == 0 and index.read_bytes() == before


def test_a_deleted_video_leaves_the_index(clips, tmp_path):
    videos, place = movable(clips, tmp_path)
    extract(*place)
    (videos / "SVD" / "0.mp4").unlink()
    assert extract(*place)["videos"] == 0
    assert "SVD/0.mp4" not in paths(tmp_path / "f") and len(paths(tmp_path / "f")) == 8


def test_a_clip_without_its_features_file_stops_training_in_a_line(features, tmp_path):
    folder = Path(shutil.copytree(features, tmp_path / "f"))
    (folder / "SVD" / "9.mp4.npz").unlink()
    with pytest.raises(InputError, match=r"f/SVD/9\.mp4\.npz is missing; run 01 again"):
        stage("02_pretrain_binary", "--features", folder, "--run", tmp_path / "run", "--epochs", 1)


def test_a_small_run_leaves_the_index_of_its_own_videos(clips, tmp_path):
    place = ["--videos", clips, "--features", tmp_path, "--pool", 4]
    extract(*place)
    assert extract(*place, "--limit", 1)["skipped"] == 3
    assert len(paths(tmp_path)) == 3 and len(tree(tmp_path)) == 9
    assert extract(*place)["videos"] == 0 and len(paths(tmp_path)) == 9


def test_videos_of_a_renamed_generator_leave_the_old_name(clips, tmp_path):
    videos, place = movable(clips, tmp_path)
    extract(*place)
    (videos / "SVD").rename(videos / "Sora")
    assert extract(*place)["videos"] == 3
    assert sorted({row.generator for row in read_index(tmp_path / "f")}) == ["Pika", "Real", "Sora"]
    (videos / "Sora").rename(videos / "SVD")
    assert extract(*place)["videos"] == 0 and "SVD/0.mp4" in paths(tmp_path / "f")


def test_a_damaged_features_file_is_made_again(clips, tmp_path):
    place = ["--videos", clips, "--features", tmp_path, "--pool", 4]
    extract(*place)
    whole = tree(tmp_path)
    (tmp_path / "SVD" / "0.mp4.npz").write_bytes(whole["SVD/0.mp4.npz"][:1000])
    assert extract(*place)["videos"] == 1 and tree(tmp_path) == whole


def test_a_video_that_broke_has_an_error_until_it_is_mended(clips, tmp_path):
    videos, place = movable(clips, tmp_path)
    extract(*place)
    whole = (videos / "SVD" / "0.mp4").read_bytes()
    (videos / "SVD" / "0.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 9"):
        extract(*place, "--overwrite")
    assert {row.path: row.error for row in read_index(tmp_path / "f")}["SVD/0.mp4"] == "empty file"
    with pytest.raises(InputError, match="1 of 9"):  # what an older run made of it does not come back
        extract(*place)
    (videos / "SVD" / "0.mp4").write_bytes(whole)
    assert extract(*place)["videos"] == 1 and not any(row.error for row in read_index(tmp_path / "f"))


def test_tokens_of_a_long_clip_are_gathered_on_disk(clips, tmp_path, monkeypatch):
    extract("--videos", clips, "--features", tmp_path / "memory", "--frames", 5)
    monkeypatch.setattr("tokens.dataset.LARGE", 10)
    memmap, made = np.memmap, []
    monkeypatch.setattr(np, "memmap", lambda *given, **more: made.append(given) or memmap(*given, **more))
    extract("--videos", clips, "--features", tmp_path / "disk", "--frames", 5)
    assert len(made) == 9 and tree(tmp_path / "disk") == tree(tmp_path / "memory")


def test_a_zoo_is_known_as_simulated(zoo, tmp_path):
    table = write_table(tmp_path / "set.csv", [(zoo / "SVD" / "0000.mp4", "SVD")])
    for number, given in enumerate((zoo, table)):
        extract("--videos", given, "--features", tmp_path / f"f{number}", "--limit", 1, "--pool", 4)
        assert read_json(tmp_path / f"f{number}" / "recipe.json")["simulated"] is True


def test_metadata_of_equalized_clips_is_equal(tmp_path):
    root = tmp_path / "videos"
    write_clip(root / "Real" / "a.mp4", 60, 30)
    write_clip(root / "Real" / "b.gif", 40, 10)
    write_clip(root / "Sora" / "c.mkv", frames=[numbered(i, (96, 160)) for i in range(30)], fps=24)
    write_clip(root / "Sora" / "short.mp4", 12, 24)
    counts = extract("--videos", root, "--features", tmp_path / "f", "--equalize")
    assert (counts["videos"], counts["windows"], counts["failed"], counts["short"]) == (3, 3, 0, 1)
    rows = {row.path: row for row in read_index(tmp_path / "f")}
    assert rows.pop("Sora/short.mp4").error == "shorter than 1 s; cannot be equalized"
    described = {
        tuple(getattr(row, key) for key in ("fps", "size", "length", "container", "windows")) for row in rows.values()
    }
    assert described == {("8.000", "128x128", "1.000", "mp4", 1)}
    again = extract("--videos", root, "--features", tmp_path / "f", "--equalize")
    assert (again["skipped"], again["short"]) == (3, 1)


@pytest.mark.skipif(not CORPUS.exists(), reason="the shared corpus is not here")
def test_corpus_clips_of_every_format_are_extracted(tmp_path):
    files = [file for file in sorted(CORPUS.glob("*/*/*")) if file.stat().st_size < 400_000]
    kinds = sorted({file.suffix for file in files})
    chosen = [file for kind in kinds for file in [file for file in files if file.suffix == kind][:3]]
    table = write_table(tmp_path / "set.csv", [(file, file.parent.name) for file in chosen])
    counts = extract("--videos", table, "--features", tmp_path / "f")
    assert counts["videos"] == len(chosen) and counts["failed"] == 0 and len(kinds) >= 4


# ---------------------------------------------------------------- shards and interruptions


def test_shards_add_up_to_the_whole(clips, tmp_path):
    extract("--videos", clips, "--features", tmp_path / "whole")
    for i in (1, 2, 3, 4):
        extract("--videos", clips, "--features", tmp_path / "parts", "--shard", f"{i}/4")
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert read_index(tmp_path / "parts") == read_index(tmp_path / "whole")
    assert len(list((tmp_path / "parts").glob("index-*-of-4.csv"))) == 4


def test_a_run_of_other_parts_starts_a_new_index(clips, tmp_path):
    place = ["--videos", clips, "--features", tmp_path, "--pool", 4]
    for shard in ("1/2", "2/2"):
        extract(*place, "--shard", shard)
    whole = read_index(tmp_path)
    assert extract(*place, "--shard", "1/3")["videos"] == 0
    with pytest.raises(InputError, match=r"index-1-of-3\.csv: not all parts of an index; run 01 for each --shard"):
        read_index(tmp_path)
    assert extract(*place)["videos"] == 0
    assert [file.name for file in tmp_path.glob("index-*")] == ["index-1-of-1.csv"] and read_index(tmp_path) == whole


DIES = """
import os, signal, sys
sys.path.insert(0, "tests")
from stages import module
extract_features = module("01_extract_features")
write, written = extract_features.write_features, []
def note(*arguments):
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(write(*arguments))
extract_features.write_features = note
extract_features.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_shard_is_completed_by_the_same_command(clips, tmp_path):
    extract("--videos", clips, "--features", tmp_path / "whole")
    place = ["--videos", clips, "--features", tmp_path / "parts", "--shard"]
    extract(*place, "2/2")
    command = [sys.executable, "-c", DIES, *map(str, place), "1/2"]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert 4 < len(tree(tmp_path / "parts")) < 9
    extract(*place, "1/2")
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert read_index(tmp_path / "parts") == read_index(tmp_path / "whole")


def test_an_interruption_leaves_an_index_and_the_same_command_goes_on(clips, tmp_path, monkeypatch):
    script = module("01_extract_features")
    write, written = script.write_features, []

    def interrupted(file, *rest):
        if len(written) == 4:
            raise KeyboardInterrupt
        write(file, *rest)
        written.append(str(file.relative_to(tmp_path)).removesuffix(".npz"))

    monkeypatch.setattr(script, "write_features", interrupted)
    monkeypatch.setattr("sys.argv", ["01", "--videos", str(clips), "--features", str(tmp_path)])
    with pytest.raises(SystemExit, match="the same command goes on"):
        run_script(script.main)
    assert paths(tmp_path) == sorted(written)
    monkeypatch.setattr(script, "write_features", write)
    assert extract("--videos", clips, "--features", tmp_path)["videos"] == 5


# ---------------------------------------------------------------- what cannot be done


def hostile(root):
    """Files that are not what they are called; returns how many of them cannot be read."""
    whole = write_clip(root / "Sora" / "whole.mp4", 48, 24).read_bytes()
    (root / "Sora" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "Sora" / "empty.mp4").write_bytes(b"")
    (root / "Sora" / "text.mp4").write_text("#EXTM3U\nhttp://localhost/x.ts\n")
    (root / "Sora" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    (root / "Sora" / "broken.webp").write_bytes(b"RIFF0000WEBP" + b"0" * 40)
    (root / "Sora" / "link.mp4").symlink_to(root / "nowhere.mp4")
    (root / "Sora" / "folder.mp4").mkdir()
    with av.open(str(root / "Sora" / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    cv2.imwrite(str(root / "Dot" / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    return 6


def test_unreadable_files_are_listed_and_do_not_stop_the_rest(tmp_path, capsys, monkeypatch):
    root, features = tmp_path / "videos", tmp_path / "f"
    (root / "Dot").mkdir(parents=True)
    bad = hostile(root)
    monkeypatch.setattr("sys.argv", ["01_extract_features.py", "--videos", str(root), "--features", str(features)])
    with pytest.raises(SystemExit) as exit_:
        run_script(module("01_extract_features").main)
    assert f"{bad} of 8 videos could not be read" in exit_.value.code
    errors = {row.path: row.error for row in read_index(features)}
    assert errors.pop("Sora/whole.mp4") == errors.pop("Dot/dot.png") == ""
    assert len(errors) == bad and all(errors.values()) and errors["Sora/empty.mp4"] == "empty file"
    assert errors["Sora/sound.mp4"] == "no video stream" and "cut.mp4: " in capsys.readouterr().out

    write_clip(root / "Sora" / "cut.mp4")  # mended: tried again, and the others too
    for name in ("empty.mp4", "text.mp4", "link.mp4", "sound.mp4"):
        (root / "Sora" / name).unlink()
    with pytest.raises(InputError, match="1 of 4"):
        extract("--videos", root, "--features", features)
    assert {row.path: row.error for row in read_index(features)}["Sora/cut.mp4"] == ""


def test_a_full_disk_stops_in_a_line_and_keeps_what_is_whole(clips, tmp_path, monkeypatch):
    savez, saved = np.savez, []

    def full(file, **arrays):
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(savez(file, **arrays))

    monkeypatch.setattr("basics.artifacts.np.savez", full)
    with pytest.raises(InputError, match=r"\.npz cannot be written \(No space left on device\)"):
        extract("--videos", clips, "--features", tmp_path)
    assert len(tree(tmp_path)) == len(paths(tmp_path)) == 3


@pytest.mark.parametrize(
    "wrong", [["--shard", "0/3"], ["--shard", "4/3"], ["--fps", "0"], ["--equalize", "126"], ["--pool", "x"]]
)
def test_wrong_arguments_end_with_status_2(wrong):
    with pytest.raises(SystemExit) as exit_:
        module("01_extract_features").get_args(wrong)
    assert exit_.value.code == 2


# ---------------------------------------------------------------- a process of its own

WITHOUT_KERAS = """
import sys
sys.path.insert(0, "tests")
from stages import stage
for name, *flags in (line.split() for line in sys.argv[1:]):
    stage(name, *flags)
    print(name, "loaded", sorted({"keras", "tensorflow", "jax"} & set(sys.modules)))
"""


def test_the_zoo_and_its_dct_features_are_made_without_keras(tmp_path):
    zoo = f"simulate_videos --out {tmp_path}/zoo --clips-per-generator 1 --limit 1"
    features = f"01_extract_features --videos {tmp_path}/zoo --features {tmp_path}/f --pool 2"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, zoo, features], cwd=ROOT, capture_output=True, text=True, check=True
    )
    printed = [line for line in done.stdout.splitlines() if " loaded " in line]
    assert printed == ["simulate_videos loaded []", "01_extract_features loaded []"]
    assert len(tree(tmp_path / "f")) == len(list((tmp_path / "zoo").glob("*/*.mp4"))) == 20
