"""A script is answered to and ends well whatever it is started in: signals, locale, streams, home, backend."""

import os
import signal
import subprocess
import sys
import time

import pytest
from small import write_clip

from basics.artifacts import read_json
from basics.running import GRACE, ROOT
from tokens.dataset import read_index

HELD = """
import ctypes, sys, time
from basics.running import run_script

def library():
    mutex = ctypes.create_string_buffer(64)
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(mutex)  # the second time it waits for ever

def main():
    try:
        print("begun", flush=True)
        library() if sys.argv[1] == "library" else time.sleep(100)
    finally:
        time.sleep(1)
        print("kept", flush=True)

run_script(main)
"""


def start(*command, **how):
    how = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    return subprocess.Popen([sys.executable, *map(str, command)], **how)


def interruptible():
    """In a child: Ctrl-C as in a terminal, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGTERM] * 2], ids=str)
@pytest.mark.parametrize("where", ["Python", "library"])
def test_interrupted_script_keeps_what_is_done_and_ends_in_one_line(numbers, where):
    """Within seconds, in code of others too. It may come twice: `timeout` signals a process and then its group."""
    with start("-c", HELD, where, preexec_fn=interruptible) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        begun = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - begun < GRACE + 5
    assert errors == "-c: interrupted; the same command goes on (without --overwrite)\n"
    assert out == ("kept\n" if where == "Python" else "")


@pytest.fixture
def videos(tmp_path):
    for i in range(3):
        write_clip(tmp_path / "videos" / "SVD" / f"é日{i}.mp4", count=8)
    return tmp_path / "videos"


SURROUNDINGS = {
    "ascii streams": ("", {"PYTHONIOENCODING": "ascii"}),
    "C locale": ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "closed input": ("<&-", {}),
    "closed output": (">&-", {}),
    "closed errors": ("2>&-", {}),
    "all closed": ("<&- >&- 2>&-", {}),
    "no home": ("", {"HOME": "/nowhere", "MPLCONFIGDIR": ""}),
    "no backend": ("", {"KERAS_BACKEND": "torch"}),  # which this encoder does not need
}


@pytest.mark.parametrize("what", SURROUNDINGS)
def test_scripts_work_in_any_surroundings(videos, tmp_path, what):
    streams, variables = SURROUNDINGS[what]
    extract = [sys.executable, ROOT / "01_extract_features.py", "--videos", videos, "--features", tmp_path / "f"]
    command = f"exec {' '.join(map(str, extract))} {streams}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=os.environ | variables, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert [row.path for row in read_index(tmp_path / "f")] == [f"SVD/é日{i}.mp4" for i in range(3)]
    assert read_json(tmp_path / "f" / "recipe.json")["encoder"] == "dct"


@pytest.mark.parametrize("backend", ["torch", "nonsense"])
@pytest.mark.parametrize(
    "command", ["01_extract_features.py --encoder mobilenet", "02_pretrain_binary.py", "attribute_video.py none.mp4"]
)
def test_backend_that_is_not_there_is_one_line_that_names_the_variable(backend, command, videos):
    more = ["--videos", videos] if command.startswith("01") else []
    process = start(*command.split(), *more, env=os.environ | {"KERAS_BACKEND": backend})
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("\n") == 1
    assert errors.startswith(f"{command.split()[0]}: KERAS_BACKEND={backend}: ") and "choose " in errors


WITHOUT = """
import importlib.util, os, sys
find_spec, missing = importlib.util.find_spec, sys.argv[1].split(",")
importlib.util.find_spec = lambda name, *more: None if name in missing else find_spec(name, *more)
sys.argv[:] = sys.argv[2:]
import basics.backend
print(os.environ["KERAS_BACKEND"])
"""


@pytest.mark.parametrize(
    "missing, chosen, words",
    [
        ("tensorflow", "", "jax\n"),
        ("jax", "", "tensorflow\n"),
        ("tensorflow,jax", "", "x.py: neither tensorflow nor jax is installed"),
        ("tensorflow", "tensorflow", "x.py: KERAS_BACKEND=tensorflow: no such backend here"),
    ],
)
def test_backend_is_one_that_is_installed(missing, chosen, words):
    process = start("-c", WITHOUT, missing, "x.py", env=os.environ | {"KERAS_BACKEND": chosen})
    out, errors = process.communicate(timeout=60)
    assert process.returncode == ("py:" in words) and (out + errors).startswith(words)
    assert (out + errors).count("\n") == 1


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"backend": "jax"}', "jax\n"),
        ('{"backend": "tensorflow"}', "tensorflow\n"),
        ("{}", "tensorflow\n"),
        ('{"backend": "nonsense"}', "backend nonsense: no such backend here; "),
        ('{"backend": ["jax"]}', "backend is ['jax'], not text"),
        ('{"floatx": "float7"}', "floatx is 'float7'"),
        ("[]", "it is [], not an object"),
        ("{", "not valid JSON"),
    ],
)
def test_settings_of_keras_count_where_the_environment_names_no_backend(tmp_path, content, words):
    (tmp_path / "keras.json").write_text(content)
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    process = start("-c", WITHOUT, "", "x.py", env=environment | {"KERAS_HOME": str(tmp_path)})
    out, errors = process.communicate(timeout=60)
    assert words in out + errors and (out + errors).count("\n") == 1
    assert process.returncode == bool(errors) and (not errors or str(tmp_path / "keras.json") in errors)


@pytest.mark.parametrize("command", ["01_extract_features.py --videos", "01_extract_features.py --videos . --features"])
def test_path_that_no_file_can_have_is_one_line(command):
    process = start(*command.split(), "x" * 300)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("\n") == 1 and "File name too long" in errors


def test_full_disk_under_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        process = start("reproduce.py", "--list", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("\n") == 1 and "No space left on device" in errors
