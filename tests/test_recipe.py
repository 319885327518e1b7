"""The search for the preset's settings: what is compared with what, and that each change is one that trains."""

import numpy as np
import pytest
from stages import module

from experiments import recipe
from experiments.stages import as_flags
from training.presets import PRESETS


def seeds(*macros):
    return [macro and {"macro_accuracy": macro, "accuracy": 0.5, "cross_entropy": 1.0} for macro in macros]


def test_gains_are_paired_over_seeds_and_means_over_levels():
    preset = {"team": seeds(0.5, 0.6, 0.7), "gen": seeds(0.4, 0.5, 0.6)}
    changed = {"team": seeds(0.6, 0.6, None), "gen": seeds(0.6, 0.6, 0.6)}
    np.testing.assert_allclose(recipe.gains_over(preset, changed), [0.15, 0.05])


@pytest.mark.parametrize("change", recipe.CHANGES)
def test_every_change_is_one_of_the_preset_and_of_03s_flags(change):
    settings = recipe.CHANGES[change]
    plain = vars(module("03_attribute").get_args(["--preset", "small"]))
    changed = vars(module("03_attribute").get_args(["--preset", "small", *map(str, as_flags(settings))]))
    assert {key for key in plain if plain[key] != changed[key]} == settings.keys()
    assert settings.keys() <= PRESETS["small"].keys() | {"dropout", "loss"}
