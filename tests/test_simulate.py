"""The zoo of simulated generators: one content for all classes, marks that scale, files that can be trusted."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

import simulate_videos
from basics.artifacts import write_atomically
from basics.running import InputError, run_script
from simulate_videos import DEPTHS, EASE_SECONDS, HABITS, RESIDUES, encode, generator_mark, main, make_clip, render_clip
from tokens.generators import load_generators

ROWS = {row.name: (row.name, row.task, row.sd_version, row.team) for row in load_generators().values()}
MARKS = {name: generator_mark(*row) for name, row in ROWS.items()}


def simulate(folder, *flags):
    return main(["--out", str(folder), "--clips-per-generator", "1", "--limit", "1", *flags])


def clips_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).glob("*/*"))}


def pretend(job):
    """In place of make_clip: a file that holds the strength."""
    path, *_, strength = job
    write_atomically(path, lambda file: file.write_text(str(strength)))


@pytest.fixture(scope="module")
def whole_zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "zoo"
    assert simulate(folder) == {"written": 20, "skipped": 0}
    return folder


# ---------------------------------------------------------------- marks


def test_at_strength_zero_a_clip_is_the_same_for_all_generators():
    real = render_clip(7, MARKS["Real"], 0.0)
    for name, mark in MARKS.items():
        assert np.array_equal(render_clip(7, mark, 0.0), real), name


def test_at_strength_one_every_generator_leaves_a_mark_of_its_own():
    clips = {name: render_clip(7, mark, 1.0) for name, mark in MARKS.items()}
    plain = render_clip(7, MARKS["Real"], 0.0)
    assert all(np.any(clip != plain) for clip in clips.values())
    assert len({clip.tobytes() for clip in clips.values()}) == len(MARKS)


@pytest.mark.parametrize("habit", DEPTHS)
def test_each_habit_changes_the_clip_over_time_and_more_so_when_stronger(habit):
    mark = MARKS["Sora"]._replace(habit=habit, grid=0.0, detail=0.0, period=0.5, depth=DEPTHS[habit])
    plain = render_clip(3, mark, 0.0).astype(float)
    changes = [np.abs(render_clip(3, mark, strength) - plain).mean(axis=(1, 2, 3)) for strength in (0.5, 1.0)]
    assert 0 < changes[0].mean() < changes[1].mean()
    assert changes[1].max() > 1.2 * changes[1].min()


def test_temporal_marks_stay_below_4_hz_where_8_frames_a_second_see_them():
    strangers = [(f"New{index}", "T2V", "Unknown", f"Team {index}") for index in range(200)]
    for row in [*ROWS.values(), *strangers]:
        assert 1 / generator_mark(*row).period < 4, row
    assert 1 / EASE_SECONDS < 4


def test_the_tables_of_marks_name_every_known_version_and_team_once():
    rows = [row for name, row in ROWS.items() if name != "Real"]
    assert {team for *_, team in rows} == set(HABITS)
    assert {sd_version for *_, sd_version, _ in rows} - {"Unknown", "Mixed"} == set(RESIDUES)
    assert len(set(HABITS.values())) == len(HABITS), "two teams share habit and period"


def test_marks_are_shared_within_a_version_and_a_team_and_the_rest_is_the_generators_own():
    first, second = MARKS["VideoCrafter"], MARKS["Crafter"]
    assert (first.waves, first.detail, first.habit) == (second.waves, second.detail, second.habit)
    assert (first.period, first.phase, first.depth) != (second.period, second.phase, second.depth)


def test_i2v_starts_from_a_still_and_t2v_in_motion():
    def first_motion(task):
        mark = generator_mark("Real", "Real", "Real", "Real")
        mark = mark._replace(noise=0.0, shake=0.0, ease={"I2V": 1.0, "T2V": 0.0}[task])
        clips = [render_clip(seed, mark, 1.0)[[0, 2]].astype(float) for seed in range(4)]
        return np.mean([np.abs(clip[1] - clip[0]).mean() for clip in clips])

    assert first_motion("I2V") < 0.6 * first_motion("T2V")


# ---------------------------------------------------------------- files


def test_every_class_has_the_same_size_rate_length_and_codec(whole_zoo):
    properties = set()
    for path in sorted(whole_zoo.glob("*/*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [(frame.width, frame.height, frame.format.name) for frame in container.decode(stream)]
            codec = stream.codec_context
            properties.add((codec.name, codec.profile, stream.average_rate, float(container.duration)))
            properties.update(frames)
            assert len(frames) == 48, path
    assert properties == {("h264", "High", 24, 2_000_000.0), (128, 128, "yuv420p")}


def test_real_gets_six_times_as_many_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate_videos, "make_clip", pretend)
    main(["--out", str(tmp_path), "--clips-per-generator", "1"])
    counts = {folder.name: len(list(folder.iterdir())) for folder in tmp_path.iterdir() if folder.is_dir()}
    assert counts == {name: 6 if name == "Real" else 1 for name in ROWS}


def test_a_clip_depends_on_seed_generator_and_index_and_on_nothing_else(whole_zoo, tmp_path):
    table = tmp_path / "two.csv"
    header = "name,aliases,task,sd_version,team\nReal,,Real,Real,Real\n"
    table.write_text(header + "New,,T2V,Unknown,Nobody\nSora,,T2V,Unknown,OpenAI\n", encoding="utf-8")
    flags = ("--clips-per-generator", "12", "--limit", "12", "--generators", str(table))
    simulate(tmp_path / "more", *flags)  # 36 clips: on a machine of two cores, in two processes
    more, one = clips_of(tmp_path / "more"), clips_of(whole_zoo)
    assert set(more) == {f"{name}/{index:04d}.mp4" for name in ("Real", "New", "Sora") for index in range(12)}
    assert more["Sora/0000.mp4"] == one["Sora/0000.mp4"]
    assert more["Real/0000.mp4"] == one["Real/0000.mp4"]
    assert len(set(more.values())) == len(more), "two clips are the same"


def test_another_seed_makes_other_clips(whole_zoo, tmp_path):
    table = tmp_path / "one.csv"
    table.write_text("name,aliases,task,sd_version,team\nReal,,Real,Real,Real\n", encoding="utf-8")
    simulate(tmp_path / "zoo", "--seed", "1", "--generators", str(table))
    assert clips_of(tmp_path / "zoo")["Real/0000.mp4"] != clips_of(whole_zoo)["Real/0000.mp4"]


def test_a_second_run_makes_only_what_is_missing(whole_zoo):
    before = clips_of(whole_zoo)
    (whole_zoo / "Sora" / "0000.mp4").unlink()
    assert simulate(whole_zoo) == {"written": 1, "skipped": 19}
    assert clips_of(whole_zoo) == before


@pytest.mark.parametrize("flags", [("--seed", "1"), ("--strength", "0.5")])
def test_clips_made_otherwise_are_refused(whole_zoo, flags):
    before = clips_of(whole_zoo)
    with pytest.raises(InputError, match="--out.*--overwrite") as stopped:
        simulate(whole_zoo, *flags)
    assert str(whole_zoo) in str(stopped.value)
    assert clips_of(whole_zoo) == before


def test_generators_are_added_to_a_zoo_and_changed_ones_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate_videos, "make_clip", pretend)
    table = tmp_path / "table.csv"
    flags = ("--generators", str(table))
    first = "name,aliases,task,sd_version,team\nReal,,Real,Real,Real\nNew,,T2V,Unknown,Nobody\n"
    table.write_text(first, encoding="utf-8")
    simulate(tmp_path / "zoo", *flags)
    table.write_text(first + "Newer,,T2V,Unknown,Nobody\n", encoding="utf-8")
    assert simulate(tmp_path / "zoo", *flags) == {"written": 1, "skipped": 2}
    table.write_text(first.replace("T2V", "I2V"), encoding="utf-8")
    with pytest.raises(InputError, match=r"other settings \(generators.New\).*--out.*--overwrite"):
        simulate(tmp_path / "zoo", *flags)


def test_overwrite_replaces_every_clip_of_the_old_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate_videos, "make_clip", pretend)
    main(["--out", str(tmp_path), "--clips-per-generator", "1"])
    simulate(tmp_path, "--strength", "0.5", "--overwrite")
    assert set(clips_of(tmp_path).values()) == {b"0.5"}
    assert json.loads((tmp_path / "recipe.json").read_text())["strength"] == 0.5


def test_a_folder_of_somebodys_videos_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "Real").mkdir()
    (tmp_path / "Real" / "0000.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="did not make"):
        simulate(tmp_path, "--overwrite")
    assert clips_of(tmp_path) == {"Real/0000.mp4": b"mine"}


def test_the_recipe_of_something_else_is_kept(tmp_path):
    (tmp_path / "recipe.json").write_text(features := '{"encoder": "dct", "simulated": true}')
    with pytest.raises(InputError, match="did not make"):
        simulate(tmp_path, "--overwrite")
    assert (tmp_path / "recipe.json").read_text() == features


def test_a_write_that_fails_half_way_leaves_no_file(tmp_path, monkeypatch):
    def half(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError, match="0000.mp4 cannot be written .No space left on device.; make room"):
        make_clip((tmp_path / "0000.mp4", 1, ROWS["Sora"], 1.0))
    assert list(tmp_path.iterdir()) == []


def test_the_clip_is_absent_until_it_is_whole(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append(paths[1].exists()), replace(*paths)))
    make_clip((tmp_path / "0000.mp4", 1, ROWS["Sora"], 1.0))
    assert seen == [False] and [path.name for path in tmp_path.iterdir()] == ["0000.mp4"]
    assert (tmp_path / "0000.mp4").read_bytes() == encode(render_clip(1, MARKS["Sora"], 1.0))


def test_the_recipe_says_that_the_clips_are_simulated(whole_zoo):
    recipe = json.loads((whole_zoo / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["simulated"] is True and "say nothing about real generators" in recipe["note"]
    assert recipe["seed"] == 0 and recipe["strength"] == 1.0 and recipe["clip"]["frames"] == 48


@pytest.mark.parametrize("flags", [["--strength", "-1"], ["--clips-per-generator", "0"], ["--limit", "0"]])
def test_wrong_arguments_exit_with_status_2(flags):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2


def test_a_missing_table_is_one_plain_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["simulate_videos.py"])
    with pytest.raises(SystemExit, match="simulate_videos.py: .*missing.csv") as stopped:
        run_script(lambda: simulate(tmp_path, "--generators", str(tmp_path / "missing.csv")))
    assert "\n" not in stopped.value.code
