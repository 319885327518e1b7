"""Which files are videos, under which generator, group and split."""

import os
from collections import Counter

import pytest

from basics.artifacts import write_csv
from basics.running import InputError
from tokens.generators import load_generators
from tokens.listing import list_videos
from tokens.split import assign_splits, group_hash, set_splits


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def listed(root):
    rows, ignored = list_videos(root, load_generators())
    return {row.source: (row.path, row.generator) for row in rows}, +ignored


def test_layouts_give_generator_and_index_path(tmp_path):
    expected = {
        "Lavie/a.mp4": ("Lavie/a.mp4", "Lavie"),
        "Morph/deep/a.MP4": ("MorphStudio/Morph/deep/a.MP4", "MorphStudio"),
        "MorphStudio/deep/a.MP4": ("MorphStudio/deep/a.MP4", "MorphStudio"),
        "Real/k400/x.webm": ("Real/k400/x.webm", "Real"),
        "FAKE/show_1/x.gif": ("Show_1/show_1/x.gif", "Show_1"),
        "val/Fake/Brand new/x.mov": ("Brand new/x.mov", "Brand new"),
        "DVF/Sora/0_real/x.mp4": ("Real/Sora/x.mp4", "Real"),
        "DVF/Sora/1_fake/x.mp4": ("Sora/x.mp4", "Sora"),
        "Unknown one/x.mkv": ("Unknown one/x.mkv", "Unknown one"),
        'SVD/it\'s "a", b\nc 視頻.mp4': ('SVD/it\'s "a", b\nc 視頻.mp4', "SVD"),
        "Stills/a.PNG": ("Stills/a.PNG", "Stills"),
        "Stills/b.jpeg": ("Stills/b.jpeg", "Stills"),
        "Gen2/moving.webp": ("Gen2/gen-2/moving.webp", "Gen2"),
    }
    expected["gen-2/moving.webp"] = expected.pop("Gen2/moving.webp")
    touch(tmp_path, *expected)
    junk = [
        "__MACOSX/Lavie/._a.mp4",
        "Lavie/._a.mp4",
        ".cache/x.mp4",
        "Lavie/.DS_Store",
        "Lavie/Thumbs.db",
        "Lavie/d.ini",
    ]
    touch(tmp_path, *junk, "Lavie/stray.jpg", "root.mp4", "val/Fake/nobody.mp4", "Lavie/notes.txt")
    os.mkfifo(tmp_path / "Lavie" / "pipe.mp4")
    found, ignored = listed(tmp_path)
    assert found == expected
    assert ignored == {
        **{
            "hidden or system": 4,
            "*.db": 1,
            "*.ini": 1,
            "*.txt": 1,
            "stills beside videos": 1,
            "not a regular file": 1,
        },
        "not in a generator's folder (put it in one, or name its generator in a CSV)": 2,
    }


def test_two_files_of_one_index_path_are_named(tmp_path):
    touch(tmp_path, "a/Real/x.mp4", "b/Real/x.mp4")
    with pytest.raises(InputError, match=r"a/Real/x\.mp4 and .*b/Real/x\.mp4"):
        listed(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        listed(tmp_path / "nowhere")


def write_table(path, header, *lines):
    write_csv(path, header, [dict(zip(header, line, strict=True)) for line in lines])
    return path


def test_csv_names_videos_groups_and_splits(tmp_path):
    header = ("path", "generator", "group", "stratum", "split")
    lines = [
        ("v/a.mp4", "Morph", "g1", "720p", "test"),
        ("../b,\n.mp4", "Nobody", "", "", ""),
        ("/c/é.mp4", "Real", "", "", ""),
    ]
    rows, _ = list_videos(write_table(tmp_path / "set.csv", header, *lines), load_generators())
    found = {row.path: [getattr(row, key) for key in (*header[1:], "source")] for row in rows}
    assert found == {
        "MorphStudio/v/a.mp4": ["MorphStudio", "g1", "720p", "test", "v/a.mp4"],
        "Nobody/b,\n.mp4": ["Nobody", "Nobody/b,\n.mp4", "", "", str(tmp_path.parent / "b,\n.mp4")],
        "Real/c/é.mp4": ["Real", "Real/c/é.mp4", "", "", "/c/é.mp4"],
    }
    for wrong, message in ((("a.mp4", "", "", "", ""), "line 2"), (("a.mp4", "Real", "", "", "dev"), "'dev'")):
        with pytest.raises(InputError, match=message):
            list_videos(write_table(tmp_path / "wrong.csv", header, wrong), load_generators())
    with pytest.raises(InputError, match="generator"):
        list_videos(write_table(tmp_path / "wrong.csv", ("path",), ("a.mp4",)), load_generators())
    both = [("a.mp4", "Real", "g", "", "test"), ("b.mp4", "Real", "g", "", "train")]
    rows, _ = list_videos(write_table(tmp_path / "both.csv", header, *both), load_generators())
    with pytest.raises(InputError, match="group g is in"):
        set_splits(rows, {})


# ---------------------------------------------------------------- splits


def test_splits_are_fractions_of_groups_and_stay_when_videos_are_added():
    groups = [f"clip {i // 2}" for i in range(4000)]
    generators = [("Real", "Sora")[i % 4 // 2] for i in range(4000)]
    first = assign_splits(groups[:2000], generators[:2000])
    share = Counter(first.values())
    assert abs(share["test"] / 1000 - 0.2) < 0.04 and abs(share["val"] / 1000 - 0.08) < 0.03
    assert all((group_hash(group) < 0.2) == (split == "test") for group, split in first.items())
    assert first.items() <= assign_splits(groups, generators, recorded=first).items()


def test_every_generator_is_trained_on_and_tested_where_it_can_be():
    by_hash = sorted((f"clip {i}" for i in range(200)), key=group_hash)
    tested, trained = by_hash[:3], by_hash[-4:]  # by hash alone these are all test, all train
    splits = assign_splits([*tested, *trained], ["a"] * 3 + ["b"] * 3 + ["c"])
    assert [splits[group] for group in tested] == ["test", "test", "train"]
    assert [splits[group] for group in trained] == ["test", "train", "train", "train"]
    assert assign_splits(tested[:1], ["a"]) == {tested[0]: "train"}  # a single group is train only
    recorded = dict.fromkeys(trained[1:3], "train")
    later = assign_splits(trained, "bbbb", recorded)
    assert recorded.items() <= later.items() and later[trained[0]] == "test"
