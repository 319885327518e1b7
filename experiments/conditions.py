"""The conditions of the ablations, as data: which arms are trained under each, and what it changes in them.

ABLATIONS["margin"]["margin 0.5"]      {"2-stage few CE+HNM": {"last": {"margin": 0.5}}}
"""

from experiments.stages import TWO_FEW

CE = "2-stage few CE"
PLAIN = {"CE alone": {CE: {}}}


def alone(**settings):
    """HNM with these settings; its CE is the plain one."""
    return {TWO_FEW: {"last": settings}}


def alike(**change):
    """CE and HNM, changed in the same way."""
    return {CE: change, TWO_FEW: change}


SCALES = {"normalised": True, "raw": False}
MINING = {"margin 0.2": {"margin": 0.2}, "margin 1": {"margin": 1.0}}
MINING |= {"margin 1, lambda 0.5": {"margin": 1.0, "ce_weight": 0.5}}
ABLATIONS = {  # what: condition: arm: what the condition changes in it
    "margin": PLAIN
    | {f"margin {margin:g}": alone(margin=margin) for margin in (0.2, 0.5, 1.0, 2.0, 5.0)}
    | {"margin 1 subtracted, as Eq. (5) prints it": alone(margin=-1.0)},
    "positives": PLAIN | {f"{kind} positives": alone(positives=kind) for kind in ("all", "hardest", "random")},
    "normalize": PLAIN
    | {f"{scale}, {name}": alone(normalize=on, **own) for scale, on in SCALES.items() for name, own in MINING.items()},
    "batching": {f"{kind} batches": alike(last={"batching": kind}) for kind in ("natural", "pk")},
    "depth": {f"{blocks} temporal blocks": alike(only={"temporal_blocks": blocks}) for blocks in (2, 5, 12)},
    "dtype": {name: alike(only={"dtype": name}) for name in ("float32", "mixed_bfloat16")},
    "schedule": {
        f"rate {rate}, {longer} x the steps": alike(last={"learning_rate": float(rate)}, longer=longer)
        for rate in ("3e-5", "3e-4")
        for longer in (1, 4)
    },
}
