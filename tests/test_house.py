"""The house: which room may know which, who is imported, how large files are, what a command loads."""

import ast
import os
import re
import subprocess
import sys

import pytest

from basics.running import ROOT, InputError, run_script

FLOORS = ("basics", "tokens", "common", "training", "stage", "attribute_video", "experiments", "reproduce")
FLOOR = {room: floor for floor, room in enumerate(FLOORS)} | {"report": FLOORS.index("stage")}
TOP = {"common", "simulate_videos", "get_clips", "attribute_video", "reproduce"}
STAGES = sorted(path.stem for path in ROOT.glob("0[1-5]_*.py"))
LINES = {"common": 450} | dict.fromkeys(STAGES, 280)


def files():
    listed = [path for path in ROOT.glob("*.py")]
    for room in ("basics", "tokens", "training", "report", "experiments"):
        listed += (ROOT / room).glob("*.py")
    return sorted(listed)


def room_of(name):
    """The room of a dotted module name; None for packages of others."""
    first = name.split(".")[0]
    if first in STAGES:
        return "stage"
    return first if first in FLOOR or first == "simulate_videos" else None


def imports(path):
    """Dotted names that a file imports, inside functions too, and of `from room import module` the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    room = "stage" if path.stem in STAGES else path.parent.name if path.parent != ROOT else path.stem
    for name in imports(path):
        other = room_of(name)
        assert other != "stage", f"{path.name} imports a stage: {name}"
        if other is None or other == room:
            continue
        if room == "simulate_videos":
            assert other in ("basics", "tokens"), name
        else:
            assert other != "simulate_videos" or room == "experiments", name
            assert FLOOR.get(other, -1) < FLOOR[room], f"{path.name} in {room} imports {name}"


@pytest.mark.parametrize("room", ["basics", "tokens", "training"])
def test_lower_rooms_know_no_arguments_of_commands(room):
    for path in (ROOT / room).glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "args" not in names and "Namespace" not in used, path
        assert not any(name.split(".")[0] == "argparse" for name in imports(path)), path


def test_stages_are_run_by_name_in_one_place():
    callers = [path for path in files() if "import_module" in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(ROOT)) for path in callers] == ["experiments/stages.py"]


def test_encoders_do_not_know_the_pretrained_ones():
    assert not any("pretrained" in name for name in imports(ROOT / "tokens" / "encoders.py"))


def test_no_room_imports_anything_by_itself():
    for path in ROOT.glob("*/__init__.py"):
        assert not path.read_text().strip(), path


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_no_longer_than_promised(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES.get(path.stem, 350)


def test_top_holds_ten_commands_at_most():
    assert {path.stem for path in ROOT.glob("*.py")} <= {*STAGES, *TOP}


# ---------------------------------------------------------------- what a command loads

LOADED = """
import runpy, sys
sys.argv[:] = sys.argv[1:]
status = None
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
print(status, *({"keras", "tensorflow", "jax", "sklearn", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    ["reproduce.py --list", "reproduce.py --wrong", "attribute_video.py --help", "attribute_video.py --wrong"]
    + ["simulate_videos.py --wrong", "01_extract_features.py --wrong", "05_wild_constrained.py --wrong"],
)
def test_command_answers_before_anything_heavy_is_loaded(command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *command.split()], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == ("2" if "--wrong" in command else "0" if "--help" in command else "None")


# ---------------------------------------------------------------- packages


def names_of(path, optional=False):
    """Packages of a requirements file; with `optional` those in its comments too."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    lines = [line.removeprefix("# ") if optional and "optional:" in line else line for line in lines]
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines if line.strip() and not line.startswith("#")}


def test_every_package_that_is_imported_is_declared():
    declared = names_of("requirements.txt", optional=True)
    spelled = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "keras_hub": "keras-hub", "PIL": "pillow"}
    spelled |= {"c2pa": "c2pa-python"}
    own = {*FLOOR, "simulate_videos", *STAGES}
    brought = {"kagglehub", "huggingface_hub", "h5py"}  # by keras-hub and keras, whose files and handles they read
    for path in files():
        for name in imports(path):
            package = name.split(".")[0]
            if package not in sys.stdlib_module_names and package not in own | brought:
                assert spelled.get(package, package).lower() in declared, f"{path}: {package}"


def test_tried_versions_are_pinned_for_all_that_is_required():
    pinned = names_of("constraints.txt")
    assert names_of("requirements.txt") | names_of("tests/requirements.txt") <= pinned
    assert (ROOT / "constraints.txt").read_text(encoding="utf-8").count("==") == len(pinned)


@pytest.mark.slow
def test_stages_import_in_an_environment_of_the_eight(tmp_path):
    """The order's seven packages and av, in a fresh environment with the tried versions."""
    eight = ["tensorflow", "keras-hub", "numpy", "opencv-python-headless", "scikit-learn", "matplotlib", "tqdm", "av"]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", *eight], check=True)
    scripts = [*STAGES, "simulate_videos", "reproduce"]
    code = f"import importlib; [importlib.import_module(name) for name in {scripts}]"
    subprocess.run([python, "-c", code], cwd=ROOT, check=True)
    done = subprocess.run([python, "reproduce.py", "--list"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "table-7" in done.stdout


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("error", [ValueError("shapes (6,12) (5,1)"), OSError("disk"), KeyError("a"), TypeError("b")])
def test_programming_error_shows_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error), match=str(error.args[0])[:4]):
        run_script(main)


def test_closed_pipe_ends_a_command_quietly():
    command = f"{sys.executable} reproduce.py --list | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["01_extract_features.py", "--features", "{file}"],
        ["01_extract_features.py", "--features", "{file}/x"],
        ["01_extract_features.py", "--generators", "{folder}"],
        ["simulate_videos.py", "--out", "{file}", "--clips-per-generator", "1", "--limit", "1"],
        ["05_wild_constrained.py", "--generators", "{folder}", "--features", "{folder}"],
        ["reproduce.py", "compare", "{folder}", "{file}"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_folder_for_a_file_or_a_file_for_a_folder_is_one_line(command, clips, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    more = ["--videos", str(clips)] if command[0].startswith("01") else []
    filled = [part.format(file=tmp_path / "file", folder=tmp_path / "folder") for part in command]
    done = subprocess.run([sys.executable, *filled, *more], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{command[0]}: ")


def test_error_of_the_user_is_one_line_and_status_1():
    def main():
        raise InputError("a.csv: no column path; add one")

    with pytest.raises(SystemExit) as stopped:
        run_script(main)
    assert stopped.value.code.endswith(": a.csv: no column path; add one")
