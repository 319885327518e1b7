"""Settings of 02 and 03 by name: what --preset sets where no flag is given.

The defaults are the paper's, for 1.6 million videos. docs/recipe.md tells how these were found.
"""

import shlex

FEW_CLIPS = 5000
PRESETS = {  # name: flag: value; a stage takes those of the flags that it has
    "small": {
        "batch_size": 32,
        "batching": "balanced",
        "schedule": "cosine",
        "warmup_steps": 100,
        "learning_rate": 5e-4,
        "steps": 600,
        "temporal_blocks": 2,
        "normalize": True,
        "margin": 0.2,
        "ce_weight": 0.8,
        "head": "means",
    }
}


def print_preset(script, arguments, clips):
    """Print a stage's command with the preset where it has fewer clips than FEW_CLIPS and was called without one."""
    if clips < FEW_CLIPS:
        command = shlex.join(["python", script, "--preset", "small", *map(str, arguments)])
        print(f"{clips} clips are few for the paper's settings, which are the defaults; made for few are: {command}")
