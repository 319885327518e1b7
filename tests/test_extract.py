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
import weakref
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import SHARED
from small import moving, numbered, write_clip
from stages import module, stage

from basics.artifacts import read_arrays, read_json, write_atomically, write_csv
from basics.running import ROOT, InputError, run_script
from tokens.dataset import features_file, map_tokens, read_index
from tokens.encoders import ENCODERS
from tokens.videos import Video

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


def test_file_whose_features_cannot_be_written_is_an_error_of_its_own(clips, tmp_path, monkeypatch):
    def refuse(file, *rest):
        if file.name == "0.mkv.npz":
            raise InputError(f"{file} cannot be written") from OSError(errno.EACCES, "Permission denied")
        write(file, *rest)

    script = module("01_extract_features")
    write = script.write_features
    monkeypatch.setattr(script, "write_features", refuse)
    videos, place = movable(clips, tmp_path)
    (videos / "SVD" / "1.mkv").rename(videos / "SVD" / "0.mkv")
    with pytest.raises(InputError, match="1 of 9 videos could not be read"):
        extract(*place)
    (row,) = [row for row in read_index(tmp_path / "f") if row.error]
    assert "cannot be written" in row.error and row.windows == 0 and len(tree(tmp_path / "f")) == 8


def test_every_legal_name_is_stored_and_none_as_another(tmp_path):
    """A file system takes names of 255 bytes, and an index names of any length; some names belong to other files."""
    names = [f"SVD/{'a' * length}.mp4" for length in (120, 225, 240, 251)] + [f"SVD/{'日本語' * 27}ab.mp4"]
    names += [f"SVD/{'b' * 250}{end}.mp4" for end in "cd"] + ["recipe.json/a.mp4", "index-1-of-1.csv/a.mp4"]
    names += ["SVD/a.mp4", "SVD/a.mp4.npz/b.mp4"]
    for number, name in enumerate(names):
        write_clip(tmp_path / "v" / name, frames=[numbered(8 * number + i) for i in range(8)], fps=8)
    place = ["--videos", tmp_path / "v", "--features", tmp_path / "f", "--pool", 4]
    assert extract(*place)["videos"] == len(names)
    assert paths(tmp_path / "f") == sorted(names) and len(tree(tmp_path / "f")) == len(names)
    assert extract(*place)["skipped"] == len(names)
    cut = str(features_file("", f"SVD/{'b' * 250}c.mp4"))
    assert features_file("", cut.removesuffix(".npz")) != Path(cut)  # what a CSV may call another video
    table = write_table(tmp_path / "set.csv", [(tmp_path / "v" / "SVD" / "a.mp4", "長" * 200)])
    assert extract("--videos", table, "--features", tmp_path / "table")["videos"] == 1


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


# ---------------------------------------------------------------- copies of a clip


def remux(source, target):
    """The packets of a video in another container."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)


def write_copies(root, count=12):
    """Each clip under two generators in the same bytes and under a third in another container, beside clips of its own;
    at a rate at which rounded times put another frame on screen here and there.
    """
    for i in range(count):
        source = root / "Real" / f"{i}.mp4"
        write_clip(source, fps=Fraction(30000, 1001), frames=moving(60, seed=i))
        write_clip(root / "Latte" / f"{i}.mp4", fps=24, frames=moving(30, seed=100 + i))
        (root / "SVD").mkdir(exist_ok=True)
        shutil.copy(source, root / "SVD" / f"copy {i}.mp4")
        remux(source, root / "Pika" / f"{i}.mkv")


def test_copies_share_a_group_and_a_split(tmp_path, capsys):
    write_copies(tmp_path / "v")
    place = ["--videos", tmp_path / "v", "--features", tmp_path / "f", "--pool", 4]
    extract(*place)
    assert "24 videos have the same bytes or frames as another" in capsys.readouterr().out
    rows = {row.path: row for row in read_index(tmp_path / "f")}
    for i in range(12):
        of_copies = [rows[path] for path in (f"Real/{i}.mp4", f"SVD/copy {i}.mp4", f"Pika/{i}.mkv")]
        assert {row.group for row in of_copies} == {f"Pika/{i}.mkv"} and len({row.split for row in of_copies}) == 1
        assert rows[f"Latte/{i}.mp4"].group == f"Latte/{i}.mp4"
    assert {row.split for row in rows.values()} == {"train", "val", "test"}
    before = tree(tmp_path), (tmp_path / "f" / "index-1-of-1.csv").read_bytes()
    (tmp_path / "f" / "index-1-of-1.csv").unlink()
    assert extract(*place)["videos"] == 0
    assert (tree(tmp_path), (tmp_path / "f" / "index-1-of-1.csv").read_bytes()) == before


def test_copy_that_is_added_takes_the_recorded_split(tmp_path):
    for i in range(4):
        write_clip(tmp_path / "v" / "Real" / f"{i}.mp4", frames=moving(16, seed=i))
    videos = [(tmp_path / "v" / "Real" / f"{i}.mp4", "Real") for i in range(4)]
    place = ["--features", tmp_path / "f", "--pool", 4, "--videos"]
    extract(*place, write_table(tmp_path / "a.csv", videos, split="test"))
    remux(videos[2][0], tmp_path / "v" / "Pika" / "0.mkv")
    extract(*place, write_table(tmp_path / "a.csv", [*videos, (tmp_path / "v" / "Pika" / "0.mkv", "Pika")]))
    rows = read_index(tmp_path / "f")
    copies = [row for row in rows if row.path.endswith(("2.mp4", "0.mkv"))]
    assert {row.split for row in rows} == {"test"} and len({row.group for row in copies}) == 1 < len(copies)


def test_groups_of_copies_are_one_and_a_given_split_stays(tmp_path, capsys):
    table = [("0", "a", "train"), ("0", "b", "test"), ("1", "c", ""), ("2", "d", ""), ("1", "d", ""), ("2", "e", "")]
    rows = []
    for number, (seed, group, split) in enumerate(table):
        file = write_clip(tmp_path / f"{number}.mp4", frames=moving(16, seed=int(seed)))
        rows.append(dict(path=file.name, generator="Real", group=group, split=split))
    write_csv(tmp_path / "set.csv", ("path", "generator", "group", "split"), rows)
    extract("--videos", tmp_path / "set.csv", "--features", tmp_path / "f", "--pool", 4)
    rows = read_index(tmp_path / "f")
    assert [row.group for row in rows] == ["a", "a", "c", "c", "c", "c"]
    assert [row.split for row in rows[:2]] == ["train", "test"] and len({row.split for row in rows[2:]}) == 1
    assert "warning: 1 of them are given another split" in capsys.readouterr().out


def test_folders_of_a_split_keep_it_and_what_is_in_two_is_named(tmp_path, capsys):
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        write_clip(tmp_path / "v" / split / "SVD" / f"{number}.mp4", frames=moving(16, seed=number % 4))
    extract("--videos", tmp_path / "v", "--features", tmp_path / "f", "--pool", 4)
    rows = read_index(tmp_path / "f")
    assert [row.split for row in rows] == [row.source.split("/")[0] for row in rows] and len(rows) == 5
    assert len({row.group for row in rows}) == 4
    assert "warning: 1 of them are given another split" in capsys.readouterr().out


def test_shards_know_copies_by_bytes_and_one_more_run_those_by_frames(tmp_path):
    write_copies(tmp_path / "v", 8)
    place = ["--videos", tmp_path / "v", "--features", tmp_path / "f", "--pool", 4]
    for shard in ("1/2", "2/2"):
        extract(*place, "--shard", shard)
    rows = {row.path: row for row in read_index(tmp_path / "f")}
    assert all(rows[f"Real/{i}.mp4"].group == rows[f"SVD/copy {i}.mp4"].group for i in range(8))
    extract(*place)
    rows = read_index(tmp_path / "f")
    assert len({row.group for row in rows}) == len({(row.group, row.split) for row in rows}) == 16


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


class OddError(Exception):
    """An error that nobody knows."""


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


@pytest.mark.parametrize(
    "error", [EOFError("end"), MemoryError(), RecursionError("deep"), OSError(2, "gone"), OddError()]
)
def test_no_error_of_a_clip_ends_a_run(clips, tmp_path, monkeypatch, error):
    def fail(self, source):
        if source.endswith("SVD/0.mp4"):
            raise error
        opened(self, source)

    opened = Video.__init__
    monkeypatch.setattr(Video, "__init__", fail)
    with pytest.raises(InputError, match="1 of 9 videos could not be read"):
        extract("--videos", clips, "--features", tmp_path, "--pool", 4)
    assert [row.path for row in read_index(tmp_path) if row.error] == ["SVD/0.mp4"]


def test_video_that_is_gone_has_a_reason_and_keeps_its_features(clips, tmp_path):
    videos, _ = movable(clips, tmp_path)
    table = write_table(tmp_path / "set.csv", [(file, file.parent.name) for file in sorted(videos.glob("*/*"))])
    extract("--videos", table, "--features", tmp_path / "f", "--pool", 4)
    (videos / "SVD" / "0.mp4").unlink()
    with pytest.raises(InputError, match="1 of 9 videos could not be read"):
        extract("--videos", table, "--features", tmp_path / "f", "--pool", 4)
    (row,) = [row for row in read_index(tmp_path / "f") if row.error]
    assert row.error == "No such file or directory" and len(tree(tmp_path / "f")) == 9


def test_files_of_a_csv_that_cannot_be_are_errors_of_their_own(clips, tmp_path):
    videos = [(file, file.parent.name) for file in sorted(clips.glob("*/*"))]
    wrong = ["x" * 300 + ".mp4", "no/such.mp4", "SVD/" * 2000 + "a.mp4", str(clips), "/dev/zero"]
    table = write_table(tmp_path / "set.csv", [*videos, *((name, "SVD") for name in wrong)])
    with pytest.raises(InputError, match=f"{len(wrong)} of {9 + len(wrong)} videos could not be read"):
        extract("--videos", table, "--features", tmp_path / "f", "--pool", 4)
    rows = read_index(tmp_path / "f")
    assert sum(bool(row.error) for row in rows) == len(wrong) and sum(row.windows for row in rows) == 9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e5, -7e4, np.nan, np.inf])
def test_tokens_that_float16_cannot_hold_are_refused(clips, tmp_path, monkeypatch, value):
    class Large(ENCODERS["dct"]):
        def prepare(self, frame):
            tokens = super().prepare(frame)
            tokens[3, 5] = value if frame.shape[0] == 48 else 65504
            return tokens

    videos, place = movable(clips, tmp_path)
    write_clip(videos / "SVD" / "1.mkv", frames=moving(24, 48))
    monkeypatch.setitem(ENCODERS, "large", Large)
    with pytest.raises(InputError, match="1 of 9 videos could not be read"):
        extract(*place[:-2], "--encoder", "large")
    (row,) = [row for row in read_index(tmp_path / "f") if row.error]
    assert row.path == "SVD/1.mkv" and "65504" in row.error and row.windows == 0 and len(tree(tmp_path / "f")) == 8


def test_clip_of_too_many_tokens_is_refused_in_words(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("tokens.dataset.MOST_TOKENS", 2 * 8 * 16 * 144 - 1)
    with pytest.raises(InputError, match="9 of 9"):
        extract("--videos", clips, "--features", tmp_path)
    assert "tokens of 8 frames" in read_index(tmp_path)[0].error and "--pool" in read_index(tmp_path)[0].error
    assert extract("--videos", clips, "--features", tmp_path / "f", "--pool", 2)["videos"] == 9


def test_few_frames_are_held_at_a_time(tmp_path, monkeypatch):
    file, alive, most = write_clip(tmp_path / "v" / "SVD" / "a.mp4", 200), set(), []
    sample = Video.sample

    def counted(self, fps):
        for seconds, frame in sample(self, fps):
            frame = frame.copy()
            alive.add(seconds)
            weakref.finalize(frame, alive.discard, seconds)
            most.append(len(alive))
            yield seconds, frame
            del frame

    monkeypatch.setattr(Video, "sample", counted)
    extract("--videos", file.parents[1], "--features", tmp_path / "f")
    assert len(most) == 67 and max(most) <= 3


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
