"""docs/extend.md: its diffs apply to the project as it is, are short, and its commands run on them."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small import moving, write_clip

import common
from basics.artifacts import read_json
from basics.running import ROOT

CHANGES = re.findall(r"```diff\n(.*?)```\s+```bash\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.S)
STAGE_ONE = "python 02_pretrain_binary.py --preset small"


@pytest.mark.parametrize("diff", [diff for diff, _ in CHANGES], ids=lambda diff: diff.split()[1])
def test_a_change_takes_at_most_ten_lines(diff):
    changed = [line for line in diff.splitlines() if line[0] in "+-" and line[:4] not in ("+++ ", "--- ")]
    assert 0 < len(changed) <= 10


def test_the_own_loss_equals_a_loop_over_pairs():
    added = CHANGES[0][0].partition("+++ b/common.py")[2]
    names = dict(vars(common))
    exec("\n".join(line[1:] for line in added.splitlines() if line.startswith("+")), names)
    random = np.random.default_rng(0)
    embeddings, labels = random.normal(size=(12, 6)).astype("float32"), random.integers(0, 4, 12)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    weights, terms = np.exp(embeddings @ embeddings.T / 0.1), []
    for a in range(12):
        others = [i for i in range(12) if i != a]
        for p in others:
            if labels[p] == labels[a]:
                terms.append(-np.log(weights[a, p] / sum(weights[a, i] for i in others)))
    assert float(names["contrastive_loss"](labels, embeddings, 1.0, "all")) == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.fixture
def project(zoo, tmp_path):
    """A copy of the project whose data/zoo is the small zoo and whose preset has few steps, with this interpreter as
    .venv/bin/python.
    """
    listed = ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    shutil.copytree(zoo, tmp_path / "data" / "zoo")
    presets = tmp_path / "training" / "presets.py"
    presets.write_text(presets.read_text().replace('"steps": 600', '"steps": 20'))
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()  # newer than what make compares it with
    return tmp_path


def run(project, commands):
    """What bash prints for these commands."""
    environment = os.environ | {"PATH": f"{project / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", commands], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_changes_apply_and_run(project):
    assert len(CHANGES) == 4
    run(project, f"python 01_extract_features.py --pool 2\n{STAGE_ONE}")
    for i in range(8):
        write_clip(project / "data" / "zoo" / "Wan" / f"{i}.mp4", frames=moving(24, seed=i))
    printed = []
    for diff, commands in CHANGES:
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=project, check=True)
        printed.append(run(project, commands))
    loss, size, encoder, generator = printed
    assert "runs/contrastive" in loss
    assert "runs/zoo" in size and "runs/small" in size
    assert "features/thumbnail: 40 videos" in encoder
    assert "features/zoo: 8 videos" in generator and "32 were there" in generator  # the new encoder left them alone
    assert "Wan" in read_json(project / "runs" / "wan" / "gen.json")["classes"]
