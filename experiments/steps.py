"""The five stages one after the other on a small simulated zoo, and what each leaves: a walk through the files.

reads   nothing
writes  data/steps, features/steps and runs/steps; prints each artifact's keys and shapes
"""

import time
from pathlib import Path

import numpy as np

from basics.artifacts import read_json
from experiments.stages import stage

CLIPS = 8  # of each generator
VIDEOS, FEATURES, RUN = Path("data/steps"), Path("features/steps"), Path("runs/steps")
PLACE = ["--features", FEATURES, "--run", RUN]
FEW_STEPS = ["--preset", "small", "--steps", 20, "--epochs", 2]
STEPS = {  # script: its flags, and which of the files that it leaves are shown
    "simulate_videos": (["--out", VIDEOS], [VIDEOS / "Pika/0000.mp4", VIDEOS / "*.json"]),
    "01_extract_features": (
        ["--videos", VIDEOS, "--features", FEATURES, "--pool", 2],
        [FEATURES / "Pika/0000*.npz", FEATURES / "*.csv", FEATURES / "recipe.json"],
    ),
    "02_pretrain_binary": ([*PLACE, *FEW_STEPS], [RUN / "bin*"]),
    "03_attribute": (
        [*PLACE, *FEW_STEPS, "--level", "team"],
        [RUN / "team[._][!t]*", RUN / "team_tsne*"],
    ),
    "04_tsigs": ([*PLACE, "--level", "team"], [RUN / "team_tsigs*"]),
    "05_wild_constrained": (
        [*PLACE, "--target", "HotShot", "--known", "Real,SVD,Lavie", "--unseen", "Gen2,Pika,Sora"],
        [RUN / "wild*"],
    ),
}


def steps(args):
    """Run STEPS; what is up to date stays."""
    started = time.time()
    for name, (flags, shown) in STEPS.items():
        limit = ["--limit", args.limit or CLIPS] if name == "simulate_videos" else []
        print(f"\n$ python {' '.join(map(str, [f'{name}.py', *flags, *limit]))}", flush=True)
        stage(name, *flags, *limit, overwrite=args.overwrite)
        print()
        for pattern in shown:
            for path in sorted(Path().glob(str(pattern))):
                print("\n".join(describe_file(path)))
    print(f"\nsimulated clips, a few steps of training: no number here says anything. {time.time() - started:.0f} s")


def describe_file(path) -> list[str]:
    """A line for the file, and one for each array of an .npz, for the keys of a .json, for the size of a model."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return [f"{path}", *(f"    {key:16} {own.dtype} {own.shape}" for key, own in arrays.items())]
    if path.suffix == ".json":
        return [f"{path}", f"    {', '.join(read_json(path))}"]
    if path.suffix == ".keras":
        return [f"{path}", f"    {count_parameters(path):,} parameters"]
    if path.suffix == ".csv":
        return [f"{path}", f"    {path.read_text(encoding='utf-8').splitlines()[0]}"]
    return [f"{path}"]


def count_parameters(path):
    from common import load_saga  # here, since Keras comes with it

    return load_saga(path, "bin").count_params()
