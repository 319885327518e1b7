"""SAGA's tables and signatures at full size: every command in order, with its hours and terabytes. Nothing is trained.

    python reproduce.py paper --dry-run --features DIR

reads   DIR where 01 has made it, else GenVideo's counts (Table S-1), a window per clip; results/gpu.json and
        results/benchmarks.json, whose measured rates the hours are made of
writes  the commands, to the screen
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from basics.artifacts import read_json
from basics.running import ROOT, InputError
from experiments.datasets import ENCODER_FLAGS
from experiments.paper import PAPER_TABLES
from experiments.stages import LOSS_FLAGS, PAPER, STAGE_ONE, TWO_FEW, Arm, as_flags, script
from experiments.tables import LEVEL_ARMS, SPLITS
from tokens.dataset import features_recipe, read_index, usable
from tokens.generators import class_index, level_name, load_generators

GENVIDEO = {  # generator: clips (Table S-1)
    "Real": 1_213_511,
    "ZeroScope": 133_169,
    "I2VGen-XL": 61_975,
    "SVD": 149_026,
    "VideoCrafter": 39_485,
    "Pika": 98_377,
    "DynamiCrafter": 46_205,
    "SD": 200_720,
    "SEINE": 24_737,
    "Latte": 149_979,
    "OpenSora": 177_410,
    "ModelScope": 700,
    "MorphStudio": 700,
    "MoonValley": 626,
    "HotShot": 700,
    "Show_1": 700,
    "Gen2": 1_380,
    "Crafter": 1_400,
    "Lavie": 1_400,
    "Sora": 56,
}
DVF = 6_688  # its clips
WIDTH = {"siglip": 1152, "dinov2": 1024}  # of a token
FRAMES, TOKENS = 8, 729  # of a window, of a frame
TRAIN = 0.72  # of the clips, as 01 splits them
FEW = 500  # labels per class
SEMI = Arm(2, "few", "CE+semi-HNM")  # of Sec. S-6


class Command(NamedTuple):
    what: str
    flags: list  # the script and its flags
    card: float  # hours of computing
    disk: float  # hours of reading or writing tokens
    terabytes: float  # written


# ---------------------------------------------------------------- printing


def print_full_size(args):
    """Print every command that these tables need. Raises InputError while settings of the zoo are on."""
    features = Path(args.features[0])
    refuse_zoo_settings(args, features)
    commands = full_size_commands(features)
    for command in commands:
        size = f", {command.terabytes:.1f} TB" if command.terabytes else ""
        print(f"# {command.what}: {command.card:.2f} h on the card, {command.disk:.2f} h at the disk{size}")
        print(f"python {' '.join(map(str, command.flags))}\n")
    hours = sum(max(command.card, command.disk) for command in commands)
    print(f"# {len(commands)} commands, {hours:.0f} h, {sum(command.terabytes for command in commands):.0f} TB.")
    print(NOTE)


NOTE = """# A command takes the longer of its two times. They are computed from rates that were measured:
# the card, one H200 in bfloat16 without dropout (results/gpu.md): frames a second of SigLIP, for DINOv2 too, and clips
#   a second of stage 1 with batches from the host's memory;
# the disk, windows a second from a cold cache (results/benchmarks.md), for writing too.
# Left out: decoding, validation, test. A folder that is not made yet counts one window per clip, as the paper's 1.6
# million do; GenVideo's clips from end to end have 29 times as many. One seed, as in the paper."""


def refuse_zoo_settings(args, features):
    zoo = {"--few": args.few, "--limit": args.limit, "--folds": args.folds}
    zoo |= {"--data": args.data != "zoo", "--encoder": args.encoder != "dct"}
    if on := [flag for flag, value in zoo.items() if value]:
        raise InputError(f"{', '.join(on)}: a setting of small data; leave it out")
    recipe = features_recipe(features) if features.exists() else {}
    if recipe.get("simulated") or recipe.get("encoder") in ENCODER_FLAGS:
        raise InputError(f"{features} is of simulated clips or of a small encoder; name SigLIP's tokens of GenVideo")


# ---------------------------------------------------------------- the commands


def folder_name(what) -> str:
    return "-".join(re.findall(r"\w+", what)).lower()


class FullSize:
    """The commands on one features folder: of the clips and the sizes in it, or of GenVideo where it is not made."""

    def __init__(self, features, encoder, videos="GenVideo", clips=GENVIDEO):
        self.features, self.encoder, self.videos = features, encoder, videos
        self.clips, self.windows, recipe = Counter(clips), 1, {}
        if features.exists():
            rows, recipe = usable(read_index(features), features), features_recipe(features)
            if not rows:
                raise InputError(f"{features}: no video with features; the column error of its index says why")
            self.clips = Counter(row.generator for row in rows)
            self.windows = sum(row.windows for row in rows) / len(rows)  # of a clip, on average
        sizes = {"frames": FRAMES, "tokens": TOKENS, "dim": WIDTH[encoder]} | recipe
        self.frames, self.bytes = sizes["frames"], 2 * sizes["frames"] * sizes["tokens"] * sizes["dim"]  # float16

    def extract(self) -> list[Command]:
        if self.features.exists():
            return []
        windows = self.clips.total() * self.windows
        flags = ["01_extract_features.py", "--videos", self.videos, "--features", self.features]
        flags += ["--encoder", self.encoder, "--encoder-dtype", "bfloat16"]
        card, disk = windows * self.frames / card_rate("encode"), windows * self.bytes / disk_rate()
        what = f"{self.videos} with {self.encoder}, {self.clips.total():,} clips"
        return [Command(what, flags, card / 3600, disk / 3600, windows * self.bytes / 1e12)]

    def train(self, what, arm, level, **only) -> Command:
        """Stage 1 or 2 with the paper's settings, which are the scripts' defaults, and these."""
        runs = Path("runs/full") / self.features.name
        name = "stage-1" if level == "bin" and not only else folder_name(what)
        flags = [f"{script(level)}.py", "--features", self.features, "--run", runs / name]
        if level != "bin":
            start = runs / "stage-1" / "bin.keras" if arm.stages == 2 else "scratch"
            labels = FEW if arm.labels == "few" else "all"
            only |= {"level": level, "init": start, "loss": LOSS_FLAGS[arm.loss], "labels_per_class": labels}
        flags += as_flags(only | {"dtype": "mixed_bfloat16"})
        windows = PAPER["epochs"] * self.windows * self.train_clips(level, arm.labels, only.get("train_generators"))
        card, disk = windows / card_rate("stage 1", "fit"), windows * self.bytes / disk_rate()
        return Command(what, flags, card / 3600, disk / 3600, 0)

    def signatures(self, level) -> Command:
        """04 on the run that stands for SAGA at a level; its test clips count as if they were trained on once."""
        runs = Path("runs/full") / self.features.name
        run = runs / (
            "stage-1" if level == "bin" else folder_name(f"Table {PAPER_TABLES[level].split()[0]}, {TWO_FEW}")
        )
        windows = (1 - TRAIN) * self.clips.total() * self.windows
        card, disk = windows / card_rate("stage 1", "fit"), windows * self.bytes / disk_rate()
        flags = ["04_tsigs.py", "--features", self.features, "--run", run, "--level", level]
        return Command(f"Fig. 6, {level_name(level)}", flags, card / 3600, disk / 3600, 0)

    def generators(self, chosen) -> list[str]:
        table = {name: own for name, own in load_generators().items() if name in self.clips and name != "Real"}
        return [name for name, own in table.items() if chosen(own)]

    def train_clips(self, level, labels, generators) -> float:
        classes = Counter()
        for generator, clips in self.clips.items():
            label = class_index(level, generator)
            if label is not None and (not generators or generator in (*generators, "Real")):
                classes[label] += TRAIN * clips
        return sum(min(clips, FEW) if labels == "few" else clips for clips in classes.values())


def full_size_commands(features) -> list[Command]:
    """Of Tables 2 to 7 and S-3, Fig. 6 and Sec. S-6, in the order in which they can run."""
    arms = {"bin": STAGE_ONE} | dict.fromkeys(PAPER_TABLES, TWO_FEW)
    siglip = FullSize(features, "siglip")
    dvf = FullSize(features.with_name(f"{features.name}-dvf"), "siglip", "DVF", {"DVF": DVF})
    commands = [*siglip.extract(), *dvf.extract(), siglip.train("stage 1, Table 4's first row", STAGE_ONE, "bin")]
    for row, sides in SPLITS.items():
        if sides:
            train, test = (siglip.generators(side) for side in sides)
            only = {"train_generators": train, "test_generators": test}
            commands.append(siglip.train(f"Table 4, {row}", STAGE_ONE, "bin", **only))
    commands.append(siglip.train("Table 5, DVF", STAGE_ONE, "bin", test_features=dvf.features))
    for level, table in PAPER_TABLES.items():
        commands += [
            siglip.train(f"Table {table.split()[0]}, {arm}", arm, level) for arm in LEVEL_ARMS[level] if arm.times == 1
        ]
    commands.append(siglip.train(f"Sec. S-6, {SEMI}", SEMI, "gen"))
    commands += [siglip.signatures(level) for level in arms]
    dinov2 = FullSize(features.with_name(f"{features.name}-dinov2"), "dinov2")
    return [
        *commands,
        *dinov2.extract(),
        *(dinov2.train(f"Table S-3, DINOv2, {level_name(level)}", arm, level) for level, arm in arms.items()),
    ]


# ---------------------------------------------------------------- rates, as measured


def card_rate(what, more="") -> float:
    """Frames or clips a second of our code on the card, in batches of 64."""
    rows = read_json(ROOT / "results" / "gpu.json")["rows"]
    wanted = {"side": "keras", "what": what, "more": more, "batch": 64}
    return next(row["rate"] for row in rows if row.items() >= wanted.items())


def disk_rate() -> float:
    """Bytes a second of windows from a cold cache."""
    return 1e6 * read_json(ROOT / "results" / "benchmarks.json")["disk"]["rows"][0]["ours"]
