"""Nothing is lost: outputs of attribute_video.py beside inputs, runs, special files and each other; interruptions."""

import csv
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from small import moving, untrained_run, write_clip
from stages import stage

import attribute_video
from basics.running import ROOT, InputError
from report import answer, look, outputs
from report import run as runs
from report.outputs import open_csv, open_html, open_json
from tokens.dataset import read_index, write_index

KINDS = ("--json", "--csv", "--html")


@pytest.fixture(scope="module")
def run_folder(zoo, tmp_path_factory):
    """GEN-L with weights as they are drawn."""
    folder = tmp_path_factory.mktemp("outputs")
    stage("01_extract_features", "--videos", zoo, "--features", folder / "features", "--pool", 2)
    rows = [row._replace(split="test" if "0000" in row.path else "train") for row in read_index(folder / "features")]
    write_index(folder / "features" / "index-1-of-1.csv", rows)
    return untrained_run(folder / "features", folder / "run")


@pytest.fixture(scope="module")
def run(run_folder):
    return runs.load_run(run_folder)


@pytest.fixture
def loaded(run, monkeypatch):
    """The command need not load the run again."""
    monkeypatch.setattr(runs, "load_run", lambda folder, dtype=None: run)


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", fps=8, frames=moving(16))


def main(*arguments):
    return attribute_video.main([str(argument) for argument in arguments])


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ---------------------------------------------------------------- what an output must not be


@pytest.mark.parametrize("kind", KINDS)
def test_output_over_what_is_read_is_refused_before_anything_is_written(clip, run_folder, tmp_path, kind, monkeypatch):
    """By its name, another spelling, a hard link, a link, from a folder; and files beside the inputs or in a run."""
    os.link(clip, tmp_path / "hard.mp4")
    (tmp_path / "soft.mp4").symlink_to(clip)
    (tmp_path / "list.txt").write_text(f"{clip}\n")
    kept = shutil.copytree(run_folder, tmp_path / "run")
    os.link(kept / "gen.json", tmp_path / "metrics.json")
    shutil.make_archive(tmp_path / "zip", "zip", run_folder)
    other = write_clip(tmp_path / "folder" / "other.mp4", fps=8, frames=moving(16))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    spellings = (clip, f"{tmp_path}/./x/../clip.mp4", tmp_path / "hard.mp4", tmp_path / "soft.mp4")
    refused = [(path, [clip], "written over the input") for path in spellings]
    refused += [(other, [other.parent], "written over the input"), (other, [clip], "is there and no report")]
    refused += [(f"{other.parent}/none/../other.mp4", [clip], "is there and no report")]
    refused += [(kept / name, [clip], "among the files of") for name in ("gen.json", "new.json")]
    refused += [
        (run_folder / "gen.json", [clip], "among the files of"),
        (tmp_path / "metrics.json", [clip], "gen.json"),
    ]
    refused += [(folder, [clip], "is a folder") for folder in (tmp_path, ".", "/")]
    refused += [(tmp_path / "list.txt", ["-"], "written over the input"), (clip / "x", [clip], "clip.mp4/x")]
    for path, files, words in refused:
        monkeypatch.setattr(runs, "load_run", None)  # nothing is read before
        with pytest.raises(InputError, match=words) as raised, open(tmp_path / "list.txt") as listed:
            own = os.dup(0)
            os.dup2(listed.fileno(), 0)
            try:
                main(*files, "--run", kept, kind, path)
            finally:
                os.dup2(own, 0)
                os.close(own)
        assert "\n" not in str(raised.value) and kind in str(raised.value)
    with pytest.raises(InputError, match=r"written over the input .*zip.zip"):
        main(clip, "--run", tmp_path / "zip.zip", kind, tmp_path / "zip.zip")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_input_that_a_list_names_late_is_not_written_over(clip, loaded, tmp_path, monkeypatch):
    second = tmp_path / "second.txt"
    second.write_text("not yet a report")
    monkeypatch.setattr(look, "read_lines", lambda: iter([[str(clip)], [str(second)]]))
    with pytest.raises(InputError, match=f"--csv {second} would be written over the input {second}"):
        main("-", "--csv", second, "--json", tmp_path / "out.jsonl")
    assert len(lines_of(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize("pair", [("--json", "--csv"), ("--json", "--html"), ("--csv", "--html")])
def test_one_path_for_two_outputs_is_status_2(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("")
    os.link("there", "hard")
    Path("soft").symlink_to("new")
    for paths in (("new", "new"), ("new", "./x/../new"), ("New", "new"), ("there", "hard"), ("soft", "new")):
        with pytest.raises(SystemExit) as stop:
            attribute_video.get_args(["a.mp4", pair[0], paths[0], pair[1], paths[1]])
        assert stop.value.code == 2
    attribute_video.get_args(["a.mp4", pair[0], "one", pair[1], "two"])


@pytest.mark.parametrize(
    "flag", [*KINDS, "--run", "--enrol", "--export", "--features", "--encoder", "--encoder-weights"]
)
@pytest.mark.parametrize("value", ["", ","])
def test_empty_value_is_status_2(flag, value):
    if value and flag != "--enrol":
        return
    with pytest.raises(SystemExit) as stop:
        attribute_video.get_args(["a.mp4", flag, value])
    assert stop.value.code == 2


# ---------------------------------------------------------------- special files, links, full disks


@pytest.mark.parametrize("kind", KINDS)
def test_special_files_are_written_to_and_stay(clip, loaded, tmp_path, kind):
    """Each end of a pipe is open, so that nobody waits; a disk without room names the file."""
    with pytest.raises(InputError, match="/dev/full cannot be written .No space left on device"):
        main(clip, kind, "/dev/full")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert main(clip, kind, "/dev/null") == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="pipe cannot be written"):  # nobody reads it
        main(clip, kind, pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert main(clip, kind, pipe) == 1
    assert str(clip).encode() in os.read(reader, 1 << 20) and stat.S_ISFIFO(os.stat(pipe).st_mode)
    os.close(reader)
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    for _ in range(2):  # new, and there already
        main(clip, kind, tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and str(clip) in target.read_text()


def test_standard_output_by_its_name_is_lines_of_json(clip, loaded, capfd):
    main(clip, "--json", "/dev/stdout")
    assert [json.loads(line)["file"] for line in capfd.readouterr().out.splitlines()] == [str(clip)]


def test_line_that_has_no_room_is_taken_back(run, clip, tmp_path):
    """The size of a file is limited to one line and a half, which looks as a full disk."""
    (report,) = answer.attribute(clip, run)
    code = "import json, resource, sys; from report.outputs import open_json; report = json.load(open(sys.argv[1]))\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (len(json.dumps(report)) * 3 // 2, -1))\n"
    code += "with open_json(sys.argv[2]) as write: [write(report) for _ in range(2)]"
    (tmp_path / "report").write_text(json.dumps(report))
    run = [sys.executable, "-c", code, tmp_path / "report", tmp_path / "out"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert f"{tmp_path / 'out'} cannot be written (File too large)" in done.stderr
    assert len(lines_of(tmp_path / "out")) == 1


# ---------------------------------------------------------------- whole, or the answers so far


@pytest.mark.parametrize("opened, ending", [(open_csv, "csv"), (open_html, "html")])
def test_older_output_stays_until_the_new_one_is_whole(run, clip, tmp_path, opened, ending):
    path = tmp_path / f"out.{ending}"
    path.write_text("an older one")
    (report,) = answer.attribute(clip, run)
    with pytest.raises(InputError), opened(path):
        raise InputError("before any answer")
    assert path.read_text() == "an older one"
    with pytest.raises(KeyboardInterrupt), opened(path) as write:
        write(report)
        assert path.read_text() == "an older one"
        raise KeyboardInterrupt
    assert path.read_text().count(str(clip)) and "an older one" not in path.read_text()
    with opened(path):
        pass
    assert str(clip) not in path.read_text() and sorted(tmp_path.iterdir()) == sorted([path, clip])


def test_older_lines_stay_until_the_first_answer(run, clip, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("an older one\n")
    with pytest.raises(InputError), open_json(path):
        raise InputError("before any answer")
    assert path.read_text() == "an older one\n"
    with open_json(path) as write:
        write({"version": 1, "file": "a", "error": "no"})
        assert lines_of(path) == [{"version": 1, "file": "a", "error": "no"}]
    with open_json(path):
        pass
    assert path.read_text() == ""


def test_answers_come_one_by_one_and_are_kept_when_the_run_ends(clip, loaded, tmp_path, monkeypatch, capsys):
    """The third file of a batch interrupts it."""
    files = [shutil.copy(clip, tmp_path / f"{i}.mp4") for i in range(5)]
    encode_clips = look.encode_clips

    def interrupted(numbers, *more):
        for number in numbers:
            if number == 2:
                raise KeyboardInterrupt
            yield from encode_clips([number], *more)

    monkeypatch.setattr(look, "encode_clips", interrupted)
    monkeypatch.setattr(runs.Run, "batch", lambda self: 1)
    outs = [tmp_path / name for name in ("out.jsonl", "out.csv", "out.html")]
    with pytest.raises(KeyboardInterrupt):
        main(*files, *(part for pair in zip(KINDS, outs, strict=True) for part in pair))
    assert [line["file"] for line in lines_of(outs[0])] == [str(file) for file in files[:2]]
    assert [row["file"] for row in csv.DictReader(outs[1].open())] == [str(file) for file in files[:2]]
    page = outs[2].read_text()
    assert all((str(file) in page) == (i < 2) for i, file in enumerate(files))


def test_sigterm_keeps_the_answers_so_far(clip, run_folder, tmp_path):
    """A list on a pipe that stays open."""
    outs = [tmp_path / name for name in ("out.jsonl", "out.csv", "out.html")]
    flags = [str(part) for pair in zip(KINDS, outs, strict=True) for part in pair]
    given = [sys.executable, "attribute_video.py", "-", "--run", str(run_folder), *flags]
    process = subprocess.Popen(given, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(f"{clip}\n".encode())
    process.stdin.flush()
    assert process.stdout.readline().decode().strip() == str(clip)
    while not (outs[0].exists() and outs[0].read_text().endswith("\n")):
        pass
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and b"the answers so far are kept" in said.splitlines()[-1], said
    assert len(lines_of(outs[0])) == 1 and all(str(clip) in out.read_text() for out in outs[1:])


# ---------------------------------------------------------------- --resume


def test_resume_knows_a_file_by_its_bytes(loaded, tmp_path):
    """Names that differ only in bytes that are no UTF-8; a moved file; another file of its name; bytes twice."""
    names = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/\xff.mp4", b"/\xfe.mp4", b"/c.mp4", b"/d.mp4")]
    for i, name in enumerate(names):
        write_clip(tmp_path / "new.mp4", fps=8, frames=moving(16, seed=i)).rename(name)
    out = tmp_path / "out.jsonl"
    resume = ("--json", out, "--resume")
    assert main(names[0], *resume) == 1
    assert main(*names[:3], *resume) == 2
    os.rename(names[2], tmp_path / "moved.mp4")
    assert main(*names[:2], tmp_path / "moved.mp4", *resume) == 0
    shutil.copy(names[3], names[2])
    assert main(*names[2:], *resume) == 2  # the same bytes twice, as without --resume
    assert main(*names, *resume) == 0
    digests = [line["media"]["sha256"] for line in lines_of(out)]
    assert len(digests) == 5 and len(set(digests)) == 4


def test_bytes_are_hashed_once(loaded, clip, tmp_path, monkeypatch):
    hashed, digest = [], look.file_digest
    monkeypatch.setattr(look, "file_digest", lambda path: hashed.append(path) or digest(path))
    main(clip, "--json", tmp_path / "out.jsonl", "--resume")
    assert hashed == [str(clip)]


REPORT = b'{"version": 1, "file": "a", "error": null, "media": '
OTHER_LINES = [b'{"error": null}\n', b'{"error": null, "media": 1}\n', b"[" * 10**5 + b"\n", b"9" * 5000 + b"\n"]
OTHER_LINES += [b"a note", b'{"error": "of another tool"}\n', REPORT + b'{"sha256": [1]}}\n']


@pytest.mark.parametrize("content", OTHER_LINES, ids=lambda line: line[:60].decode())
def test_resume_of_other_lines_is_refused(tmp_path, content):
    """Not dropped as if they were lines of errors, or a last line that was cut."""
    (tmp_path / "out").write_bytes(content)
    with pytest.raises(InputError, match="out holds no reports"):
        outputs.answered(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("end", [8, 30, 60])
def test_resume_drops_a_last_line_that_was_cut(tmp_path, end):
    line = REPORT + b'{"sha256": "x"}}\n'
    (tmp_path / "out").write_bytes(line + line[:end])
    assert outputs.answered(tmp_path / "out") == {"x": 1}
    assert (tmp_path / "out").read_bytes() == line


def test_file_that_changes_while_it_is_read_is_not_answered(run, clip, monkeypatch):
    digest = look.file_digest

    def file_digest(path):
        found = digest(path)
        os.utime(path, (0, 0))
        return found

    monkeypatch.setattr(look, "file_digest", file_digest)
    (report,) = answer.attribute(clip, run)
    assert report["error"] == "it changed while it was read"
