"""Which files are videos, under which generator, group and split."""

import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from basics.artifacts import write_csv
from basics.running import ROOT, InputError
from tokens.dataset import read_index, write_index
from tokens.generators import load_generators
from tokens.listing import counts_text, list_videos
from tokens.split import assign_splits, group_hash, set_splits


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def listed(root):
    rows, ignored = list_videos(root, load_generators())
    return {row.source: (row.path, row.generator) for row in rows}, ignored


def test_layouts_give_generator_and_index_path(tmp_path):
    expected = {
        "Lavie/a.mp4": ("Lavie/a.mp4", "Lavie"),
        "Morph/deep/a.MP4": ("MorphStudio/Morph/deep/a.MP4", "MorphStudio"),
        "MorphStudio/deep/a.MP4": ("MorphStudio/deep/a.MP4", "MorphStudio"),
        "Real/k400/x.webm": ("Real/k400/x.webm", "Real"),
        "FAKE/show_1/x.gif": ("Show_1/show_1/x.gif", "Show_1"),
        "val/Fake/Brand new/x.mov": ("Brand new/val/x.mov", "Brand new"),
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
    (tmp_path / "Lavie" / "again").symlink_to("../Real")
    (tmp_path / "Lavie" / os.fsdecode(b"\xff.mp4")).write_bytes(b"x")
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
            "with a name that is not UTF-8": 1,
            "folder that a symbolic link shows again": 1,
        },
        "not in a generator's folder (put it in one, or name its generator in a CSV)": 2,
    }
    said = counts_text(ignored)
    assert all(f"{count} {kind}: " in said for kind, count in ignored.items())
    assert "4 hidden or system: .cache, ..." in said and r"UTF-8: Lavie/\udcff.mp4" in said
    assert "1 *.txt: Lavie/notes.txt;" in said and "2 not in a generator's folder" in said


LAYOUTS = """
    # <split>/<generator>/, with each spelling; above, below, under a root folder; and the same names in two of them
    train/Sora/a.mp4                Sora    train   Sora/train/a.mp4
    train/Real/a.mp4                Real    train   Real/train/a.mp4
    test/Sora/a.mp4                 Sora    test    Sora/test/a.mp4
    Valid/brand/a.mp4               brand   val     brand/Valid/a.mp4

    training/A/a.mp4                A       train   A/training/a.mp4
    validation/A/a.mp4              A       val     A/validation/a.mp4
    testing/A/deep/a.mp4            A       test    A/testing/deep/a.mp4

    Sora/train/a.mp4                Sora    train   Sora/train/a.mp4
    Sora/test/a.mp4                 Sora    test    Sora/test/a.mp4
    brand/test/a.mp4                brand   test    brand/test/a.mp4

    data/train/Real/a.mp4           Real    train   Real/train/a.mp4
    data/train/brand/a.mp4          brand   train   brand/train/a.mp4
    data/test/brand/a.mp4           brand   test    brand/test/a.mp4

    data/train/brand/a.mp4          brand   train   brand/train/a.mp4
    data/val/other/a.mp4            other   val     other/val/a.mp4

    test/Real/a.mp4                 Real    test    Real/test/a.mp4
    Real/a.mp4                      Real    -       Real/a.mp4
    Sora/a.mp4                      Sora    -       Sora/a.mp4

    # folders named as a split that are none: of no generator, or a generator's subject
    train/a.mp4                     -
    test/a.mp4                      -

    train/a.mp4                     -
    brand/a.mp4                     brand   -       brand/a.mp4

    Real/train/a.mp4                Real    -       Real/train/a.mp4
    Real/bus/a.mp4                  Real    -       Real/bus/a.mp4

    # Fake/ without generators, and with them
    Real/a.mp4                      Real    -       Real/a.mp4
    Fake/a.mp4                      Fake    -       Fake/a.mp4

    fake/train/a.mp4                Fake    train   Fake/fake/train/a.mp4
    fake/test/a.mp4                 Fake    test    Fake/fake/test/a.mp4
    real/train/a.mp4                Real    train   Real/real/train/a.mp4

    train/Fake/a.mp4                Fake    train   Fake/train/a.mp4
    train/Real/a.mp4                Real    train   Real/train/a.mp4
    test/Fake/a.mp4                 Fake    test    Fake/test/a.mp4

    data/Real/a.mp4                 Real    -       Real/a.mp4
    data/Fake/brand/a.mp4           brand   -       brand/a.mp4
    data/Fake/a.mp4                 -

    train/Fake/Sora/a.mp4           Sora    train   Sora/train/a.mp4
    Fake/test/Sora/a.mp4            Sora    test    Sora/test/a.mp4

    # DVF and CNNDetection
    Sora/0_real/a.mp4               Real    -       Real/Sora/a.mp4
    Sora/1_fake/a.mp4               Sora    -       Sora/a.mp4

    DVF/Sora/1_fake/a.mp4           Sora    -       Sora/a.mp4
    DVF/brand/1_fake/a.mp4          brand   -       brand/a.mp4
    DVF/brand/0_real/a.mp4          Real    -       Real/brand/a.mp4

    progan/cat/0_real/a.png         Real    -       Real/progan/cat/a.png
    progan/cat/1_fake/a.png         progan  -       progan/cat/a.png
    progan/train/1_fake/a.png       progan  -       progan/train/a.png
    biggan/0_real/a.png             Real    -       Real/biggan/a.png
    biggan/1_fake/a.png             biggan  -       biggan/a.png

    test/progan/cat/1_fake/a.png    progan  test    progan/test/cat/a.png
    test/biggan/1_fake/a.png        biggan  test    biggan/test/a.png
    val/progan/train/0_real/a.png   Real    val     Real/val/progan/train/a.png
    val/progan/cat/0_real/a.png     Real    val     Real/val/progan/cat/a.png

    brand/1_fake/SD/a.png           brand   -       brand/SD/a.png
    brand/0_real/SD/a.png           Real    -       Real/brand/SD/a.png

    Real/Fake/brand/a.mp4           brand   -       brand/a.mp4
    Real/brand/1_fake/b.mp4         brand   -       brand/b.mp4
    Real/k400/a.mp4                 Real    -       Real/k400/a.mp4

    0_real/a.png                    Real    -       Real/0_real/a.png
    1_fake/a.png                    Fake    -       Fake/1_fake/a.png

    Sora/real/a.mp4                 Real    -       Real/Sora/a.mp4
    Sora/fake/a.mp4                 Sora    -       Sora/a.mp4
    brand/fake/a.mp4                brand   -       brand/a.mp4
    brand/Real/a.mp4                Real    -       Real/brand/a.mp4

    Sora/real/a.mp4                 Sora    -       Sora/real/a.mp4
    Sora/anime/a.mp4                Sora    -       Sora/anime/a.mp4

    # GenImage
    sd4/train/ai/a.png              sd4     train   sd4/train/a.png
    sd4/train/nature/a.png          Real    train   Real/sd4/train/a.png
    sd4/val/ai/a.png                sd4     val     sd4/val/a.png
    ADM/imagenet_adm/val/nature/a.png   Real    val     Real/ADM/imagenet_adm/val/a.png

    train/sd4/ai/a.png              sd4     train   sd4/train/a.png
    train/sd4/nature/a.png          Real    train   Real/train/sd4/a.png

    train/ai/a.png                  Fake    train   Fake/train/ai/a.png
    train/nature/a.png              Real    train   Real/train/nature/a.png

    Real/a.png                      Real    -       Real/a.png
    Real/nature/b.png               Real    -       Real/nature/b.png
    AI/a.png                        AI      -       AI/a.png
"""


@pytest.mark.parametrize("layout", LAYOUTS.split("\n\n"))
def test_layout_says_generator_split_and_path(tmp_path, layout):
    lines = [re.split("  +", line.strip()) for line in layout.split("\n") if line.strip() and "#" not in line]
    touch(tmp_path, *(line[0] for line in lines))
    expected = {source: said for source, *said in lines if said != ["-"]}
    if not expected:
        with pytest.raises(InputError, match=r"no videos found; 2 not in a generator's folder .*: test/a\.mp4, \.\.\."):
            list_videos(tmp_path, load_generators())
        return
    rows, ignored = list_videos(tmp_path, load_generators())
    found = {row.source: [row.generator, row.split or "-", row.path] for row in rows}
    assert found == expected
    assert all(row.group == row.path for row in rows)
    assert sum(ignored.values()) == len(lines) - len(rows)


def test_root_folder_may_be_called_as_a_split(tmp_path):
    touch(tmp_path / "train", "Real/a.mp4", "Sora/a.mp4")
    (tmp_path / "link").symlink_to("train")
    for root in ("train", "link"):
        rows, ignored = list_videos(tmp_path / root, load_generators())
        assert [(row.path, row.split) for row in rows] == [("Real/a.mp4", ""), ("Sora/a.mp4", "")] and not ignored


def test_unicode_forms_of_a_generator_are_one(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Möbius") for form in ("NFC", "NFD"))
    touch(tmp_path, f"{composed}/é.mp4", f"{apart}/é.mp4", f"{composed}/{unicodedata.normalize('NFD', 'é')}.mp4")
    rows, _ = list_videos(tmp_path, load_generators())
    assert {row.generator for row in rows} == {composed} and len({row.path for row in rows}) == 3
    write_table(tmp_path / "set.csv", ("path", "generator"), ("a.mp4", composed), ("b.mp4", apart))
    assert {row.generator for row in list_videos(tmp_path / "set.csv", load_generators())[0]} == {composed}


NASTY = "\x1b]0;x\x07 \u202e\n"


def test_generators_and_messages_hold_nothing_that_controls_a_terminal(tmp_path):
    touch(tmp_path, f"{NASTY}/a.mp4", f"{NASTY}/notes.{NASTY}")
    write_table(tmp_path / "set.csv", ("path", "generator"), ("a.mp4", f"{NASTY}x"))
    (tmp_path / "set.csv").rename(tmp_path / "set.CSV")
    rows, ignored = list_videos(tmp_path, load_generators())
    assert counts_text(ignored).isprintable() and ignored.total() == 2
    rows += list_videos(tmp_path / "set.CSV", load_generators())[0]
    assert len(rows) == 2 and all(row.generator.isprintable() for row in rows)
    write_index(tmp_path / "index-1-of-1.csv", [row._replace(split="train") for row in rows])
    assert len(read_index(tmp_path)) == 2
    write_index(tmp_path / "index-1-of-1.csv", [rows[0]._replace(split="train", generator=NASTY)])
    with pytest.raises(InputError, match=r"index-1-of-1.csv, row .: generator is"):
        read_index(tmp_path)


def test_names_in_another_locale_are_read_or_refused_in_one_line(tmp_path):
    touch(tmp_path, "Real/a.mp4", "Real/é.mp4")
    code = "import sys; from tokens.listing import list_videos; print(len(list_videos(sys.argv[1], {})[0]))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.strip().endswith("set PYTHONUTF8=1")
    done = subprocess.run(command, env=environment | {"PYTHONUTF8": "1"}, capture_output=True, check=True)
    assert done.stdout == b"2\n"


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
        ("/c/é.mp4", " Real ", "", "", " val "),
    ]
    rows, _ = list_videos(write_table(tmp_path / "set.csv", header, *lines), load_generators())
    found = {row.path: [getattr(row, key) for key in (*header[1:], "source")] for row in rows}
    assert found == {
        "MorphStudio/v/a.mp4": ["MorphStudio", "g1", "720p", "test", "v/a.mp4"],
        "Nobody/b,\n.mp4": ["Nobody", "Nobody/b,\n.mp4", "", "", str(tmp_path.parent / "b,\n.mp4")],
        "Real/c/é.mp4": ["Real", "Real/c/é.mp4", "", "val", "/c/é.mp4"],
    }
    wrong_rows = {
        ("a.mp4", " ", "", "", ""): "row 2: generator is ' '",
        (" ", "Real", "", "", ""): "row 2: path is ' '",
        ("a.mp4", "Real", "", "", "dev"): r"wrong.csv: a.mp4 \(Real\): split 'dev'",
        ("a\0.mp4", "Real", "", "", ""): "wrong.csv: not a CSV",
    }
    for wrong, message in wrong_rows.items():
        with pytest.raises(InputError, match=message):
            list_videos(write_table(tmp_path / "wrong.csv", header, wrong), load_generators())
    with pytest.raises(InputError, match="generator"):
        list_videos(write_table(tmp_path / "wrong.csv", ("path",), ("a.mp4",)), load_generators())
    for again in ("a.mp4", "./a.mp4", "b/../a.mp4", str(tmp_path / "a.mp4")):
        twice = write_table(tmp_path / "wrong.csv", ("path", "generator"), ("a.mp4", "Pika"), (again, "Sora"))
        with pytest.raises(InputError, match=rf"wrong.csv: a.mp4 \(Pika\) and {again} \(Sora\) are one file"):
            list_videos(twice, load_generators())
    (tmp_path / "odd.csv").write_text("path, generator\n\na.mp4, Morph \n\n./a.mp4,Morph\n")
    with pytest.raises(InputError, match=r"odd.csv: a.mp4 \(Morph\) and ./a.mp4 \(Morph\) are one file"):
        list_videos(tmp_path / "odd.csv", load_generators())
    both = [("a.mp4", "Real", "g", "", "test"), ("b.mp4", "Real", "g", "", "train")]
    rows, _ = list_videos(write_table(tmp_path / "both.csv", header, *both), load_generators())
    with pytest.raises(InputError, match="group g is in"):
        set_splits(rows, {})


FORMS = {
    "as it should be": "path,generator\na.mp4,Möbius\nb.mp4,Morph\n".encode(),
    "of Excel": "path;generator\r\na.mp4;Möbius\r\nb.mp4;Morph\r\n".encode("utf-8-sig"),
    "in UTF-16": "path\tgenerator\na.mp4\tMöbius\nb.mp4\tMorph\n".encode("utf-16"),
    "with spaces and blank lines": "path, generator\n\na.mp4, Möbius\n\nb.mp4,  Morph \n\n".encode(),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_csv_is_read_in_whatever_form_it_was_saved(tmp_path, content):
    (tmp_path / "set.csv").write_bytes(content)
    rows, _ = list_videos(tmp_path / "set.csv", load_generators())
    assert [(row.path, row.generator) for row in rows] == [
        ("MorphStudio/b.mp4", "MorphStudio"),
        ("Möbius/a.mp4", "Möbius"),
    ]


@pytest.mark.parametrize("name", ["/etc/a.mp4", "../../a.mp4", "C:\\a.mp4", "..\\..\\a.mp4", ".."])
@pytest.mark.parametrize("generator", ["..", "../../x", "/etc", "C:\\x", "..\\x"])
@pytest.mark.parametrize("system", [PurePosixPath, PureWindowsPath])
def test_index_path_out_of_a_csv_stays_inside(tmp_path, name, generator, system):
    write_table(tmp_path / "set.csv", ("path", "generator"), (name, generator))
    (row,), _ = list_videos(tmp_path / "set.csv", load_generators())
    generator = system(row.path.split("/")[0])
    assert not generator.anchor and len(generator.parts) == 1
    if system is PurePosixPath:
        assert Path(os.path.normpath(tmp_path / row.path)).is_relative_to(tmp_path) and ".." not in row.path.split("/")


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
