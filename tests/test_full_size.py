"""The commands of the papers' tables at full size: the scripts take them, and what they cost by hand."""

import re
import shlex

import pytest
from small import write_folder
from stages import module

import reproduce
from basics.running import InputError

ASKED = ["paper", "--dry-run", "--features"]


def test_every_command_is_one_that_its_script_takes_with_the_papers_settings(tmp_path, capsys):
    reproduce.main([*ASKED, str(tmp_path / "genvideo")])
    printed = capsys.readouterr().out
    commands = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("python ")]
    parsed = [(name.removesuffix(".py"), module(name.removesuffix(".py")).get_args(flags)) for name, *flags in commands]
    trains = ("02_pretrain_binary", "03_attribute")
    for script, args in parsed:
        if script in trains:
            assert (args.learning_rate, args.batch_size, args.epochs, args.batching) == (1e-5, 64, 10, "natural")
        if script == "03_attribute" and args.init != "scratch":
            assert args.init in {f"{own.run}/bin.keras" for other, own in parsed if other == "02_pretrain_binary"}
    trained = [args.run for script, args in parsed if script in trains]
    signed = [args.run for script, args in parsed if script == "04_tsigs"]
    assert len(set(trained)) == len(trained) == len(commands) - 8 and len(signed) == 5 and set(signed) < set(trained)
    levels = [args.level for script, args in parsed if script == "03_attribute"]
    assert {level: levels.count(level) for level in levels} == {"task": 4, "sd": 4, "team": 4, "gen": 8}
    clips, window = 2_302_256, 8 * 729 * 1152 * 2  # Table S-1; bytes
    assert f"{clips * 8 / 696.18 / 3600:.2f} h on the card" in printed and f"{clips * window / 1e12:.1f} TB" in printed
    stage_one = re.search(r"# stage 1.*: (\S+) h on the card, (\S+) h at the disk", printed)
    assert float(stage_one[1]) == pytest.approx(10 * 0.72 * clips / 556.2 / 3600, rel=0.01)
    assert float(stage_one[2]) == pytest.approx(10 * 0.72 * clips * window / 1.073e9 / 3600, rel=0.01)
    assert not (tmp_path / "genvideo").exists()


@pytest.mark.parametrize("flags", [["--few", "15"], ["--limit", "6"], ["--data", "easy"], ["--folds", "5"]])
def test_settings_of_small_data_are_refused(tmp_path, flags):
    with pytest.raises(InputError, match=f"{flags[0]}: a setting of small data"):
        reproduce.main([*ASKED, str(tmp_path / "genvideo"), *flags])


def test_features_of_simulated_clips_are_refused(tmp_path):
    features = write_folder(tmp_path / "f", ["Real", "SVD"], clips=2)
    with pytest.raises(InputError, match="is of simulated clips"):
        reproduce.main([*ASKED, str(features)])
