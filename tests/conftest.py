"""What all tests share: TensorFlow without graphs, t-SNE that only pretends, and small things made once a session."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.manifold import TSNE
from small import SMALL, numbered, write_clip, write_folder
from stages import stage

from common import keras
from tokens.dataset import read_index, write_index

SHARED = Path(__file__).parents[2] / "shared"  # real clips and weights, where there are any
TENSORFLOW = keras.backend.backend() == "tensorflow"

if TENSORFLOW:
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)  # tracing a small model takes longer than training it


@pytest.fixture(autouse=True)
def graphs(request):
    """Tests marked `graph` compile functions, as users' runs do: those that train more than a few steps."""
    compiled = TENSORFLOW and request.node.get_closest_marker("graph")
    if compiled:
        tf.config.run_functions_eagerly(False)
    yield
    if compiled:
        tf.config.run_functions_eagerly(True)


def first_two_dimensions(self, values):
    return np.array(values)[:, :2]


REAL_TSNE, TSNE.fit_transform = TSNE.fit_transform, first_two_dimensions


@pytest.fixture(autouse=True)
def tsne(request, monkeypatch):
    """Tests marked `tsne` compute it; for all others it takes the first two dimensions, session fixtures included."""
    if request.node.get_closest_marker("tsne"):
        monkeypatch.setattr(TSNE, "fit_transform", REAL_TSNE)


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """Six generators of the table and one outside it, 20 clips each, and a broken one of Real; not to be changed."""
    generators = ["Real", "SVD", "Pika", "SEINE", "Latte", "Lavie", "WildScrape"]
    folder = write_folder(tmp_path_factory.mktemp("features"), generators)
    rows = read_index(folder)
    broken = rows[-1]._replace(path="Real/broken.mp4", generator="Real", windows=0, error="no frame")
    write_index(folder / "index-1-of-1.csv", [*rows, broken])
    return folder


@pytest.fixture(scope="session")
def run(features, tmp_path_factory):
    """A run with bin and gen trained on the features; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    place = ["--features", features, "--run", folder]
    stage("02_pretrain_binary", *place, *SMALL)
    stage("03_attribute", *place, *SMALL, "--level", "gen")
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Nine files of 24 numbered frames each, 0 to 215, by three generators; not to be changed."""
    folder = tmp_path_factory.mktemp("clips")
    for number, generator in enumerate(("Real", "SVD", "Pika")):
        for i, suffix in enumerate(("mp4", "mkv", "mp4")):
            first = 24 * (3 * number + i)
            frames = [numbered(first + k) for k in range(24)]
            write_clip(folder / generator / f"{i}.{suffix}", frames=frames)
    return folder


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A simulated zoo of three generators and Real, eight clips each; not to be changed."""
    folder = tmp_path_factory.mktemp("zoo")
    table = folder / "generators.csv"
    kept = ("name", "Real", "SVD", "Pika", "ModelScope")
    lines = (Path(__file__).parents[1] / "generators.csv").read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if line.split(",")[0] in kept))
    stage("simulate_videos", "--out", folder / "zoo", "--generators", table, "--clips-per-generator", 8, "--limit", 8)
    return folder / "zoo"
