"""The data sets that experiments run on: simulated clips, a folder of real clips, or a features folder of one's own.

reads   data/zoo or others of SIMULATED, made when missing; a corpus with clips.csv (path,label,repo,notes); --features
writes  features/, by stage 01

    data = choose_data(args)        name, features folder and folds by reproduce.py's --data, --encoder, --features
"""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from basics.artifacts import NOT_COMPARED, read_csv, write_csv
from experiments.stages import stage
from tokens.dataset import features_recipe, index_digest, read_index

ENCODER_FLAGS = {  # four tokens a frame each
    "dct": "--pool 2",
    "mobilenet": "--encoder mobilenet --layer conv_pw_5 --pool 14",
}
FOLDS = 5  # of a corpus
# Labels per class where the paper has 500; steps of training detectors on pixels.
ZOO = {"few": 15, "pixel_steps": 300}
EASY = {"few": 15, "pixel_steps": 1000}  # do detectors learn where there is much to see?
SIMULATED = {"zoo": (1, 60, ZOO), "easy": (2, 60, EASY), "large": (1, 1000, ZOO)}  # strength of marks, clips of each
OWN_DATA = {"figure-s1": "large"}  # what an entry runs on where --data says nothing; all others on the zoo
REAL = {"few": 5, "pixel_steps": 200}


class Data(NamedTuple):
    """What an experiment of the papers runs on. One fold stands for the split that the index records."""

    name: str  # in tables, and of the folder in results/
    features: Path
    folds: tuple[str | None, ...]  # values of --fold
    few: int  # labels per class where the paper has 500
    pixel_steps: int  # of detectors on pixels
    digest: str  # of index and recipe: other features are other runs
    videos: Path | None  # the folder that the index's sources are in; None: not known

    @property
    def place(self):
        """Of folders of runs and clips: no other features folder has it."""
        return own_name(self.features)

    @property
    def simulated(self):
        return bool(features_recipe(self.features).get("simulated"))


def choose_data(args) -> list[Data]:
    """The data sets of --features, or the one of --data, whose features are extracted when they are missing."""
    if args.features:
        return [make_data(args, own_name(own), Path(own), args.folds, ZOO, args.videos) for own in args.features]
    flags, name = ENCODER_FLAGS[args.encoder], f"{args.data}-{args.encoder}"
    if args.data in SIMULATED:
        (strength, clips, size), videos = SIMULATED[args.data], f"data/{args.data}"
        made = ["--out", videos, "--strength", strength, "--clips-per-generator", clips]
        stage("simulate_videos", *made, overwrite=args.overwrite)
        folder = extract(args, videos, Path(f"features/{args.data}"), limited(args, flags))
        return [make_data(args, name, folder, args.folds, size, videos)]
    folder = extract_corpus(args, f"{flags} {'--equalize' if args.data == 'equalized' else ''}")
    return [make_data(args, name, folder, args.folds or FOLDS, REAL, "")]


def own_name(folder):
    """A name that no other folder has, seen from here: zoo-1f2e3d4c, the digits of where it lies."""
    place = os.path.relpath(Path(folder).resolve(), Path.cwd().resolve())
    return f"{Path(folder).resolve().name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def make_data(args, name, folder, folds, size, videos):
    index = read_index(folder)
    recipe = {key: value for key, value in features_recipe(folder).items() if key not in NOT_COMPARED}
    digest = index_digest(index) + str(sorted(recipe.items()))
    folds = tuple(f"{k}/{folds}" for k in range(1, folds + 1)) if folds else (None,)
    few = args.few or (500 if args.full else size["few"])
    return Data(name, folder, folds, few, size["pixel_steps"], digest, None if videos is None else Path(videos))


def limited(args, flags):
    return f"{flags} --limit {args.limit}" if args.limit else flags


# ---------------------------------------------------------------- features by stage 01


def corpus_csv(corpus, path):
    """Write the CSV that 01 reads: path, generator, group.

    Clips of one source repository are one group where their label has several repositories, and so are clips noted
    to share a first frame or content; every other clip stands alone.
    """
    remedy = "name the folder of real clips with --corpus"
    clips = read_csv(Path(corpus) / "clips.csv", ("path", "label", "repo", "notes"), remedy)
    repositories, group = {}, {clip["path"]: clip["path"] for clip in clips}
    for clip in clips:
        repositories.setdefault(clip["label"], set()).add(clip["repo"])
    joined = [(clip["path"], clip["repo"]) for clip in clips if len(repositories[clip["label"]]) > 1]
    for clip in clips:
        if shared := re.search(r"shares first frame/content with (\S+)", clip["notes"]):
            joined.append((clip["path"], f"{clip['label']}/{shared[1]}"))
    for one, other in joined:
        old, new = group[one], group.setdefault(other, other)
        group = {name: new if whose == old else whose for name, whose in group.items()}
    for clip in clips:
        place = (Path(corpus) / "clips" / clip["path"]).resolve()
        clip |= {"generator": clip["label"], "group": group[clip["path"]], "path": place}
    write_csv(path, ("path", "generator", "group"), clips)


def extract_corpus(args, flags):
    """Features of the corpus by stage 01, in a folder named after its flags."""
    videos = Path("features/corpus.csv")
    corpus_csv(args.corpus, videos)
    return extract(args, videos, videos.with_suffix(""), limited(args, flags))


def extract_zoo(args, flags):
    """Features of 30 simulated clips per generator."""
    stage("simulate_videos", overwrite=args.overwrite)
    return extract(args, "data/zoo", Path("features/zoo"), f"{flags} --limit {args.limit or 30}")


def extract(args, videos, features, flags):
    folder = features.with_name("-".join([features.name, *re.findall(r"\w+", flags)]))
    weights = ["--encoder-weights", args.encoder_weights] if "mobilenet" in flags and args.encoder_weights else []
    place = ["--videos", videos, "--features", folder]
    stage("01_extract_features", *place, *flags.split(), *weights, overwrite=args.overwrite)
    return folder
