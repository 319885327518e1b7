"""Who has which role in a trial of wild.py, and what a condition changes of it.

    by_role(there, "HotShot")                                   {"known": names, "unseen": names, "wild": names}
    change = CONDITIONS["noise"]["25% target"]                  Change, or change(there, target, seed) -> Change

A trial has a target and known generators, which are labelled, unseen ones, which are tested alone, and wild ones.
"""

import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from basics.artifacts import read_arrays
from basics.running import InputError
from experiments.wild_methods import with_few_steps, with_hidden_layer
from tokens.dataset import read_index, usable
from tokens.generators import TABLE, load_generators

PER_CLIP, TAU = 4, 2.0
SETTINGS = {"images_per_clip": PER_CLIP, "tau": TAU, "target_count": 200, "known_count": 67, "wild_count": 67}
KNOWN, UNSEEN = ("Real", "Lavie", "VideoCrafter", "ZeroScope"), ("Gen2", "Sora", "Pika", "Show_1")
TARGETS = {"simulated": ("HotShot", "SVD", "SD"), "real": ("ModelScope", "SEINE", "DynamiCrafter")}


def generators_in(source):
    """The generators of a features folder, or of a run's embeddings."""
    if source.suffix == ".npz":
        return set(read_arrays(source, ("generator",))["generator"].tolist())
    return {row.generator for row in usable(read_index(source), source)}


def target_names(data):
    """The targets of some data: those of TARGETS that it has, else its first three generators."""
    there, wanted = generators_in(data.features), TARGETS["simulated" if data.simulated else "real"]
    return [name for name in wanted if name in there] or every_target(data)[:3]


def every_target(data):
    there = sorted(generators_in(data.features) - {"Real"})
    if len(there) < 6:
        raise InputError(f"{data.features} has clips of {len(there)} generators and Real; a trial takes six and Real")
    return there


def by_role(there, target):
    """Generators by role among those there: known and unseen the first three of KNOWN and UNSEEN but the target."""
    known, unseen = ([name for name in own if name in there and name != target][:3] for own in (KNOWN, UNSEEN))
    taken = {target, *known, *unseen}
    return {"known": known, "unseen": unseen, "wild": sorted(set(there) - taken)}


def by_release(there):
    """The generators there that the generator table has a month for, as earlier and later ones, and the month from
    which they are later: about the last third, no month being on both sides.
    """
    table = load_generators()
    months = {name: table[name].released for name in sorted(there) if name in table and table[name].released}
    order = sorted(months, key=months.get)
    since = months[order[math.ceil(2 * len(order) / 3)]] if len(order) >= 6 else ""
    earlier = [name for name in order if months[name] < since]
    if len(earlier) < 4:
        raise InputError(
            f"{TABLE}: releases of {len(order)} generators here, four of them before the last third; add more"
        )
    return earlier, order[len(earlier) :], since


def earlier_targets(data):
    """The targets of TARGETS that are among the earlier releases; of simulated clips those of real clips too."""
    earlier, *_ = by_release(generators_in(data.features))
    wanted = (*TARGETS["simulated"], *TARGETS["real"]) if data.simulated else TARGETS["real"]
    return [name for name in wanted if name in earlier] or earlier[:3]


# ---------------------------------------------------------------- what is changed


class Change(NamedTuple):
    """What a trial has that is not the paper's."""

    settings: dict = MappingProxyType({})  # of 05
    test_split_only: bool = False  # of unseen generators as well, so that others of their images may be wild
    refit: Callable | None = None  # refit(run, tau, seed) -> scores of FITTED and facts, in place of 05's
    share: float = 0.0  # of the wild images, the target's


PAPERS = Change()
ALL_FRAMES = 16  # of a clip of two seconds; with four the target of 43 training clips would have 172 images and not 602
POOL = 120  # wild images where sources are compared


def noisy(fraction, size=1.0):
    """This fraction of the wild images is the target's, and all others are as many of each wild generator. They are as
    many as without the target's, times `size`; labelled images are as many as the paper's.
    """

    def change(there, target, seed):
        others = by_role(there, target)["wild"]
        total = round(SETTINGS["wild_count"] * len(others) * size)
        own = round(total * fraction)
        counts = dict(zip(others, map(len, np.array_split(range(total - own), len(others))), strict=True))
        wild = [f"{name}={count}" for name, count in (counts | ({target: own} if own else {})).items()]
        return Change({"images_per_clip": ALL_FRAMES, "wild": wild}, share=fraction)

    return change


def covering(sources, unseen=0):
    """POOL wild images from so many of the wild generators, drawn by seed, and from so many of the unseen ones."""

    def change(there, target, seed):
        roles = by_role(there, target)
        drawn = np.random.default_rng((seed, 7)).permutation(roles["wild"])[:sources]
        names = [*drawn.tolist(), *roles["unseen"][:unseen]]
        settings = {"wild": names, "wild_count": max(1, round(POOL / len(names)))}
        return Change(settings, test_split_only=True)

    return change


def later_unseen(there, target, seed, drawn=False):
    """Labelled and wild are earlier releases, unseen the later ones; or, as a control, as many `drawn` by seed."""
    earlier, later, _ = by_release(there)
    known = by_role(["Real", *earlier], target)["known"]
    free = [name for name in (*earlier, *later) if name not in (target, *known)]
    unseen = np.random.default_rng((seed, 11)).permutation(free)[: len(later)].tolist() if drawn else later
    return Change({"known": known, "unseen": unseen, "wild": [name for name in free if name not in unseen]})


CONDITIONS = {  # what: condition: Change, or change(there, target, seed) -> Change
    "threshold": {f"tau {tau:g}": Change({"tau": tau}) for tau in (1.0, 1.5, 2.0, 3.0, 5.0)},
    "size": {f"{count} of each": Change({"wild_count": count}) for count in (1, 4, 16, 67)}
    | {"all": Change({"wild_count": 10**6})},
    "noise": {f"{100 * fraction:.0f}% target": noisy(fraction) for fraction in (0.0, 0.1, 0.25, 0.5)}
    | {"0% target, half as many": noisy(0.0, size=0.5)},
    "coverage": {
        "one source": covering(1),
        "three sources": covering(3),
        "all sources": covering(None),
        "all, and other images of the unseen": covering(None, unseen=3),
        "other images of the unseen alone": covering(0, unseen=3),
    },
    "released": {"later releases": later_unseen, "drawn at random": partial(later_unseen, drawn=True)},
    "head": {"linear": PAPERS, "MLP, 32 units": Change(refit=partial(with_hidden_layer, units=32))},
    "regularization": {f"l2 {l2:g}": Change({"l2": l2}) for l2 in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)}
    | {f"none, {steps} steps": Change(refit=partial(with_few_steps, steps=steps)) for steps in (10, 100, 1000, 10000)},
}
