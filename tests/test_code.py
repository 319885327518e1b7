"""Recipes hold a digest of the code: an edit that can change the numbers of a stage is noticed by that stage alone."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small import SMALL
from stages import module, stage

from basics import code
from basics.artifacts import read_json
from basics.code import code_of, print_other_code
from basics.running import ROOT, InputError
from tokens.pretrained import maker_of

ONE, TWO, LOSS = "02_pretrain_binary", "03_attribute", "common.py:hard_negative_loss"


@pytest.fixture
def edit(monkeypatch):
    """edit(file, old, new): from now on the project's file reads with that edit."""
    edits, read = {}, Path.read_text

    def read_edited(path, *more, **named):
        text = read(path, *more, **named)
        for old, new in edits.get(path.name, ()):
            assert old in text
            text = text.replace(old, new)
        return text

    def add(file, old, new):
        edits.setdefault(file, []).append((old, new))
        code.read_code.cache_clear()

    monkeypatch.setattr(Path, "read_text", read_edited)
    yield add
    code.read_code.cache_clear()


def digests(name, *more):
    return code_of(module(name).main, *more)


def test_definitions_are_those_reached_by_name():
    loss = module(TWO).LOSSES["hnm"]
    one, two = digests(ONE), digests(TWO, loss)
    assert LOSS in two and LOSS not in one and LOSS not in digests(TWO)  # the loss in use, and no other
    assert "common.py:semi_hard_negative_loss" not in two and "common.py:hardest_negative" in two
    assert {"common.py:SAGA", "common.py:WindowBatches", "tokens/split.py:choose_videos"} <= one.keys() & two.keys()
    assert not [name for name in two if "print_" in name or "draw_" in name or "plots" in name or "get_args" in name]
    assert not any("videos.py" in name for name in two)


def test_features_are_made_by_the_code_of_their_own_encoder():
    plain, clip, mobilenet = (digests("01_extract_features", maker_of(name)) for name in ("dct", "clip", "mobilenet"))
    assert all(any("videos.py" in name for name in code) for code in (plain, clip, mobilenet))
    assert "tokens/encoders.py:BlockDCT" in plain and not any("pretrained.py" in name for name in plain)
    assert "tokens/pretrained.py:clip_tokens" in clip and "tokens/preparation.py:KERNELS" in clip
    assert "tokens/pretrained.py:standardised" in mobilenet and "tokens/encoders.py:BlockDCT" not in mobilenet


@pytest.mark.parametrize(
    "change",
    [
        ("return mean_over_pairs(*triplet", "# a comment\n    return mean_over_pairs(*triplet"),
        ('"""Hard negative mining, Eq. (5)', '"""Mining of hard negatives, Eq. (5)'),
        ("return mean_over_pairs(*triplet", 'print("here")\n    return mean_over_pairs(*triplet'),
        ("fit into tokens of width", "go into tokens of width"),
    ],
)
def test_comments_docstrings_printing_and_messages_do_not_count(edit, change):
    before = digests(TWO, module(TWO).LOSSES["hnm"])
    edit("common.py", *change)
    assert digests(TWO, module(TWO).LOSSES["hnm"]) == before


@pytest.fixture
def trained(features, run, tmp_path):
    """A copy of the trained run, and the flags that say where things are."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run", ["--features", features, "--run", tmp_path / "run", *SMALL]


def test_edited_loss_asks_stage_two_for_overwrite_and_leaves_stage_one(edit, trained, capsys):
    run, flags = trained
    edit("common.py", "margin, positives=positives))", "2 * margin, positives=positives))")
    stage(ONE, *flags)
    assert "up to date" in capsys.readouterr().out
    with pytest.raises(InputError, match=rf"gen.json was made by other code \({LOSS}\); .*--overwrite"):
        stage(TWO, *flags, "--level", "gen")
    assert (run / "gen.json").is_file()


def test_edited_comment_changes_nothing(edit, trained, capsys):
    edit("common.py", "def hard_negative_loss", "# as in the paper\ndef hard_negative_loss")
    stage(TWO, *trained[1], "--level", "gen")
    assert "up to date" in capsys.readouterr().out


def test_edited_model_asks_both_stages_and_names_the_input(edit, trained, capsys):
    run, flags = trained
    edit("common.py", "x = x + self.positions(x)", "x = x + 2 * self.positions(x)")
    for name, level in ((ONE, "bin"), (TWO, "gen")):
        with pytest.raises(InputError, match=rf"{level}.json was made by other code \(common.py:SAGA\)"):
            stage(name, *flags, *(["--level", level] if level == "gen" else []))
    stage(TWO, *flags, "--level", "gen", "--overwrite", "--epochs", 1)
    line = f"{run}/bin.keras was made by other code (common.py:SAGA) and is used as it is\n"
    assert capsys.readouterr().out.count(line) == 1
    assert read_json(run / "gen.json")["recipe"]["code"][LOSS]


def test_definition_that_is_gone_is_other_code(capsys):
    print_other_code("features/a", {"code": {"tokens/videos.py:never": "0", "tokens/none.py:a": "0"}})
    names = re.escape("tokens/videos.py:never, tokens/none.py:a")
    assert re.match(rf"features/a was made by other code \({names}\)", capsys.readouterr().out)


@pytest.mark.slow
def test_edit_of_a_checkout_is_noticed_from_the_shell(zoo, tmp_path):
    """The same with real files and processes: the reader is edited, then the loss."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if name.endswith((".py", ".csv")) and not name.startswith(("tests/", "results/")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)

    def run(name, *flags):
        done = subprocess.run(
            [sys.executable, f"{name}.py", *map(str, flags)], cwd=tmp_path, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr.splitlines()[-1] if done.returncode else done.stdout

    def change(name, old, new):
        text = (tmp_path / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new))

    extract = ["01_extract_features", "--videos", zoo]
    train = ["--epochs", 1, "--batch-size", 16, "--temporal-blocks", 2]
    for command in (extract, [ONE, *train], [TWO, *train]):
        assert run(*command)[0] == 0
    change(
        "tokens/pictures.py",
        "def to_rgb(frame, aspect, reformatter):",
        "def to_rgb(frame, aspect, reformatter, more=0):",
    )
    status, text = run(*extract)
    assert status == 1 and "made by other code (tokens/pictures.py:to_rgb)" in text and "--overwrite" in text
    assert (
        run(ONE, *train, "--overwrite")[1].count("features/zoo was made by other code (tokens/pictures.py:to_rgb)") == 1
    )
    assert run(TWO, *train, "--overwrite")[0] == 0
    change("common.py", "margin, positives=positives))", "2 * margin, positives=positives))")
    assert "up to date" in run(ONE, *train)[1]
    status, text = run(TWO, *train)
    assert status == 1 and f"made by other code ({LOSS})" in text
    assert run(TWO, *train, "--overwrite")[0] == 0
