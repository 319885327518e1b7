"""02 --videos: the batches and the run that a cache would give, decoded in the background, encoded one at a time."""

import importlib
import json
import threading
import time

import av
import numpy as np
import pytest
from presets import tiny_presets
from test_extract import write_clip

from attribute_video import attribute
from tokens.dataset import Windows, differing, read_batches, read_index, read_json
from tokens.encoders import build_encoder
from tokens.split import usable
from training import streaming

extract_features = importlib.import_module("01_extract_features")
stage_one = importlib.import_module("02_pretrain_binary")
stage_two = importlib.import_module("03_attribute")
SMALL = ["--epochs", "2", "--batch-size", "8", "--learning-rate", "1e-3", "--temporal-blocks", "2", "--accumulate", "2"]


def picture(seed, number):
    """A frame of moving noise, another for each seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (48, 64 + 8 * 40, 3), np.uint8)
    return np.ascontiguousarray(noise[:, 4 * (number % 80) :][:, :64] // (1 + seed % 2))


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Three generators of ten clips: shorter than a window, two windows, padded ones, one that is long, a gif."""
    root = tmp_path_factory.mktemp("clips")
    for mark, generator in enumerate(("Real", "SVD", "Pika")):
        for i in range(10):
            kind = "gif" if i == 4 else "mp4"
            count = (24, 48, 60, 10, 30, 200)[i % 6]
            frames = [picture(3 * i + mark, number) for number in range(count)]
            write_clip(root / generator / f"{i}.{kind}", fps=20 if kind == "gif" else 24, frames=frames)
    return root


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    return str(tiny_presets(tmp_path_factory.mktemp("presets"))["siglip"])


@pytest.fixture(scope="session")
def cached(clips, tmp_path_factory):
    """Features of the clips by 01, and a run of 02 on them."""
    folder = tmp_path_factory.mktemp("cached")
    extract_features.main(["--videos", str(clips), "--features", str(folder / "f"), "--pool", "2"])
    metrics = stage_one.main(["--features", str(folder / "f"), "--run", str(folder / "run"), *SMALL])
    return folder / "f", folder / "run", metrics


@pytest.fixture(scope="session")
def streamed(clips, tmp_path_factory):
    run = tmp_path_factory.mktemp("streamed")
    return run, stage_one.main(["--videos", str(clips), "--pool", "2", "--run", str(run), *SMALL])


def stream(videos, run, *more):
    args = stage_one.get_args(["--videos", str(videos), "--run", str(run), *more])
    return streaming.open_stream(args)


# ---------------------------------------------------------------- the same as with a cache


def test_index_or_recipe_of_a_stream_differs_from_the_caches(cached, streamed):
    features, _, _ = cached
    assert read_index(streamed[0] / "stream") == read_index(features)
    recipes = (read_json(folder / "recipe.json") for folder in (streamed[0] / "stream", features))
    assert not differing(*recipes)
    assert not list((streamed[0] / "stream").rglob("*.npz"))


@pytest.mark.parametrize("encoder", ["dct", "siglip"])
def test_streamed_batch_differs_from_the_cached_one(clips, preset, tmp_path, encoder):
    flags = ["--encoder", preset] if encoder == "siglip" else []
    extract_features.main(["--videos", str(clips), "--features", str(tmp_path / "f"), "--limit", "4", *flags])
    paths = {row["path"] for row in read_index(tmp_path / "f")}
    rows, windows = stream(clips, tmp_path / "run", *flags, "--encoder-batch", "24", "--threads", "2")
    rows = [row for row in rows if row["path"] in paths]
    ours, theirs = windows(rows), Windows(usable(read_index(tmp_path / "f"), tmp_path / "f"))
    assert ours.shape == theirs.shape and len(ours) == len(theirs)
    np.testing.assert_array_equal(ours.video, theirs.video)
    order = np.random.default_rng(0).permutation(len(ours))
    batches = [order[:7], order[7:20], order[[3, 3, 5]], np.arange(len(ours))]
    for batch, tokens in zip(batches, read_batches(ours, batches), strict=True):
        assert tokens.dtype == np.float16
        # a pretrained encoder's sums depend on where in a batch a frame stands, by a last bit before rounding
        np.testing.assert_allclose(tokens, theirs[batch], atol=0 if encoder == "dct" else 4e-3)
    np.testing.assert_allclose(ours[2], theirs[2], atol=4e-3)


def test_streamed_run_ends_otherwise_than_the_cached_one(cached, streamed):
    _, run, metrics = cached
    ours, theirs = ({key: found[key] for key in found if key != "recipe"} for found in (streamed[1], metrics))
    assert ours == theirs
    with np.load(streamed[0] / "bin_embeddings.npz") as ours, np.load(run / "bin_embeddings.npz") as theirs:
        for key in ("embedding", "probabilities", "video", "split"):
            np.testing.assert_array_equal(ours[key], theirs[key])
    assert (streamed[0] / "bin_history.csv").read_text() == (run / "bin_history.csv").read_text()


def test_later_stages_refuse_a_streamed_run(cached, streamed, clips, tmp_path):
    init = ["--init", str(streamed[0] / "bin.keras"), "--labels-per-class", "all", "--loss", "ce", *SMALL]
    metrics = stage_two.main(["--features", str(cached[0]), "--run", str(tmp_path), "--level", "gen", *init])
    assert metrics["classes"] == ["Real", "SVD", "Pika"]
    (report,) = attribute([clips / "SVD" / "1.mp4"], streamed[0])
    assert report["levels"]["bin"]["answer"] in ("Real", "Fake")


# ---------------------------------------------------------------- going on


def test_second_run_trains_or_counts_again(clips, streamed, monkeypatch, capsys):
    monkeypatch.setattr(streaming, "Video", None)
    run, metrics = streamed
    again = stage_one.main(["--videos", str(clips), "--pool", "2", "--run", str(run), *SMALL, "--threads", "1"])
    assert again == json.loads(json.dumps(metrics)) and "up to date" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds other features.*pool 2 there, 4 now.*--run"):
        stage_one.main(["--videos", str(clips), "--pool", "4", "--run", str(run), *SMALL])


def test_resumed_stream_differs_from_an_uninterrupted_one(clips, streamed, tmp_path, monkeypatch):
    command = ["--videos", str(clips), "--pool", "2", "--run", str(tmp_path), *SMALL]
    validation, calls = importlib.import_module("training.callbacks").validation, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validation(*arguments)

    monkeypatch.setattr("training.callbacks.validation", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage_one.main(command)
    monkeypatch.setattr("training.callbacks.validation", validation)
    metrics = stage_one.main(command)
    assert {key: metrics[key] for key in metrics if key != "recipe"} == {
        key: streamed[1][key] for key in metrics if key != "recipe"
    }


# ---------------------------------------------------------------- where it runs


class Slow:
    """An encoder that notes how many threads are in it, and what was decoded meanwhile."""

    name, tokens, dim, recipe = "slow", 1, 2, {}

    def __init__(self):
        self.inside, self.most, self.prepared, self.meanwhile = 0, 0, 0, 0

    def prepare(self, frame):
        self.prepared += 1
        return frame.mean()

    def encode(self, prepared):
        self.inside += 1
        self.most, before = max(self.most, self.inside), self.prepared
        time.sleep(0.2)
        self.meanwhile += self.prepared - before
        self.inside -= 1
        return np.zeros((len(prepared), 1, 2), np.float32) + np.array(prepared)[:, None, None]


def test_encoder_is_called_by_two_threads_or_decoding_waits_for_it(clips, tmp_path):
    encoder = Slow()
    rows, _ = stream(clips, tmp_path)
    shared = streaming.SharedEncoder(encoder, fps=8, frames=8, threads=2, batch_size=256)
    one, other = (streaming.StreamedWindows(part, shared) for part in (rows[:15], rows[15:]))
    batches = np.arange(24).reshape(6, 4)
    threads = [threading.Thread(target=lambda part=part: list(read_batches(part, batches))) for part in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoder.most == 1
    assert encoder.meanwhile > encoder.prepared / 3


def test_encoder_is_given_batches_of_other_sizes(clips, tmp_path):
    encoder, sizes = build_encoder("dct"), []
    encode = encoder.encode
    encoder.encode = lambda prepared: sizes.append(len(prepared)) or encode(prepared)
    rows, _ = stream(clips, tmp_path)
    windows = streaming.StreamedWindows(rows, streaming.SharedEncoder(encoder, 8, 8, 2, 24))
    windows[np.arange(10)]
    assert set(sizes) == {24} and len(sizes) < 4  # padding is not encoded: 10 windows have 80 places


# ---------------------------------------------------------------- files that cannot be read


def test_unreadable_video_stops_a_stream_or_goes_unnoticed(clips, tmp_path, capsys):
    root = tmp_path / "videos"
    root.mkdir()
    for generator in clips.iterdir():
        (root / generator.name).symlink_to(generator)
    (root / "Sora").mkdir()
    (root / "Sora" / "empty.mp4").write_bytes(b"")
    rows, _ = stream(root, tmp_path / "run")
    assert "Sora/empty.mp4: empty file; left out" in capsys.readouterr().out
    assert len(rows) == 31 and len(usable(rows, "f")) == 30
    for i in range(4):
        (root / "Sora" / f"{i}.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"5 of 35 videos could not be read; the column error of .*index-1-of-1.csv"):
        stream(root, tmp_path / "run")


def test_damaged_end_is_another_than_the_caches(tmp_path, capsys):
    """The window that the damage cuts is the cache's; those after it, which a cache has not, repeat its last frame."""
    frames = [picture(1, number) for number in range(96)]
    path = write_clip(tmp_path / "videos" / "SVD" / "a.mp4", fps=24, frames=frames)
    data = path.read_bytes()
    start = data.index(b"mdat")
    end = data.index(b"moov") if data.index(b"moov") > start else len(data)
    place = start + (end - start) // 2
    path.write_bytes(data[:place] + bytes(end - place - 8) + data[end - 8 :])
    extract_features.main(["--videos", str(tmp_path / "videos"), "--features", str(tmp_path / "f")])
    theirs = Windows(usable(read_index(tmp_path / "f"), tmp_path / "f"))
    rows, windows = stream(tmp_path / "videos", tmp_path / "run")
    ours = windows(rows)
    assert len(theirs) < len(ours) == 4
    tokens = np.stack([ours[i] for i in range(4)])
    np.testing.assert_array_equal(tokens[: len(theirs)], theirs[np.arange(len(theirs))])
    assert (tokens[-1] == tokens[len(theirs) - 1, -1]).all()
    assert capsys.readouterr().out.count("SVD/a.mp4: damaged; its last good frame") == 1


@pytest.mark.parametrize("good", [24, 0])
def test_stream_ends_where_a_part_of_a_file_or_all_of_it_cannot_be_decoded(tmp_path, good):
    """A part that begins with a key frame, so that nothing before it is decoded for a window of it."""
    frames = [picture(1, number) for number in range(48)]
    path = tmp_path / "videos" / "SVD" / "a.mp4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as output:
        track = output.add_stream("libx264", rate=24, options={"g": "24", "sc_threshold": "0", "bf": "0"})
        track.height, track.width = frames[0].shape[:2]
        packets = [track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")) for frame in frames]
        packets = [packet for part in [*packets, track.encode()] for packet in part]
        output.mux(packets)
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    sizes = [packet.size for packet in packets]
    first, last = start + sum(sizes[:good]), start + sum(sizes)
    path.write_bytes(data[:first] + bytes(last - first) + data[last:])
    rows, windows = stream(tmp_path / "videos", tmp_path / "run")
    ours = windows(rows)
    tokens = [ours[i] for i in range(len(ours))]
    assert len(tokens) == 2
    black = build_encoder("dct").encode([build_encoder("dct").prepare(np.zeros_like(frames[0]))])[0].astype(np.float16)
    if good:
        assert (tokens[1] == tokens[0][-1]).all() and not (tokens[0] == black).all()
    else:
        assert all((token == black).all() for token in tokens)


@pytest.mark.parametrize("change", ["gone", "longer"])
def test_file_that_changes_in_training_is_not_named(clips, tmp_path, monkeypatch, change):
    root = tmp_path / "videos"
    for generator in ("Real", "SVD"):
        for i in range(6):
            frames = [picture(i + 10 * (generator == "SVD"), number) for number in range(24)]
            write_clip(root / generator / f"{i}.mp4", fps=24, frames=frames)
    fit = stage_one.fit

    def changed(*arguments):
        for generator in ("Real", "SVD"):
            for i in range(6):
                path = root / generator / f"{i}.mp4"
                path.unlink()
                if change == "longer":
                    write_clip(path, fps=24, frames=[picture(i, number) for number in range(48)])
        return fit(*arguments)

    monkeypatch.setattr(stage_one, "fit", changed)
    said = "No such file" if change == "gone" else "1 windows were counted, it has 2 now"
    with pytest.raises(ValueError, match=rf"videos/\w+/\d.mp4: {said}.*--overwrite"):
        stage_one.main(["--videos", str(root), "--run", str(tmp_path / "run"), *SMALL, "--batch-size", "2"])


def test_error_of_a_batch_is_wrapped_by_the_backend(clips, tmp_path, monkeypatch):
    """In the middle of an epoch Keras's own threads read the batches, and TensorFlow's errors are no ValueErrors."""
    decode, calls = streaming.StreamedWindows.decode, []

    def broken(self, video, offsets):
        calls.append(video)
        if len(calls) > 60:
            raise ValueError("clip.mp4: broken half-way")
        return decode(self, video, offsets)

    monkeypatch.setattr(streaming.StreamedWindows, "decode", broken)
    with pytest.raises(ValueError, match="^clip.mp4: broken half-way$"):
        stage_one.main(["--videos", str(clips), "--run", str(tmp_path), *SMALL, "--epochs", "9", "--batch-size", "4"])


@pytest.mark.parametrize(
    "wrong",
    [["--encoder", "siglip"], ["--pool", "2"], ["--videos", "v", "--features", "f"], ["--encoder-batch", "8"]]
    + [["--videos", "v", "--test-features", "f"], ["--videos", "v", "--fps", "0"]],
)
def test_wrong_arguments_do_not_end_with_status_2(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        stage_one.get_args(wrong)
    assert exit_.value.code == 2 and "error:" in capsys.readouterr().err


def test_recipe_of_a_cached_run_names_an_encoder_that_did_not_make_it(cached):
    arguments = read_json(cached[1] / "bin.json")["recipe"]["arguments"]
    assert not {"videos", "encoder", "pool", "threads"} & arguments.keys()


def test_limit_counts_more_than_it_trains_on(clips, tmp_path):
    rows, _ = stream(clips, tmp_path, "--limit", "1")
    assert len(rows) <= 9 and len({(row["generator"], row["split"]) for row in rows}) == len(rows)
