"""Is an int8 cache harmless? Accuracy on tokens rounded to int8 less that on the same tokens as they are, by seed.

    python benchmarks/int8.py features/zoo-pool-2 features/zoo-mobilenet

Each token gets one float16 scale, its largest magnitude / 127, which costs 1 / D more. SAGA is trained at GEN-L in one
stage with cross-entropy, and the linear probe on mean tokens, on both. Harmless is said where the 95% t interval of
SAGA's differences over seeds holds 0 and their mean is less than the standard deviation over seeds. Writes
results/int8.json, from which benchmarks/plan.py takes its word, and results/int8.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import stages  # noqa: E402  (the repository's root is on the path first)

from experiments.ablations import interval  # noqa: E402
from experiments.probes import linear_probe  # noqa: E402
from tokens.dataset import features_file, map_tokens, read_index, read_json, write_features, write_index, write_json  # noqa: E402
from training.evaluation import score  # noqa: E402


def rounded(tokens):
    """Tokens (..., D) as int8 with a float16 scale per token would give them back."""
    tokens = np.asarray(tokens, np.float32)
    scale = np.maximum(np.abs(tokens).max(axis=-1, keepdims=True) / 127, 2.0**-14).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(tokens / scale), -127, 127) * scale


def round_folder(features, target):
    """A features folder of the same videos, tokens rounded; the RMS change over the standard deviation of tokens."""
    rows, squares = read_index(features), np.zeros(3)
    for row in (row for row in rows if row["windows"]):
        with np.load(features_file(features, row["path"])) as arrays:
            tokens, times, valid = (arrays[key] for key in ("tokens", "times", "valid"))
        write_features(features_file(target, row["path"]), rounded(tokens), times, valid)
        change = map_tokens(features_file(target, row["path"])).astype(np.float64) - tokens
        squares += np.mean(change**2), np.mean(tokens, dtype=np.float64), np.mean(np.float64(tokens) ** 2)
    write_index(target / "index-1-of-1.csv", rows)
    write_json(target / "recipe.json", read_json(Path(features) / "recipe.json"))
    change, mean, square = squares / sum(row["windows"] > 0 for row in rows)
    return float(np.sqrt(change / (square - mean**2)))


def accuracies(features, run, seed, epochs):
    """Micro accuracy on test of SAGA and of the linear probe, and chance."""
    flags = [*stages.SMALL_DATA.split(), "--init", "scratch", "--loss", "ce", "--labels-per-class", "all"]
    metrics, videos = stages.train(
        "gen", "--features", features, "--run", run, *flags, "--epochs", epochs, "--seed", seed
    )
    linear = score([row["label"] for row in videos.test], linear_probe(videos, seed), videos.classes)
    return metrics["accuracy"], linear["accuracy"], metrics["majority"], metrics["videos"]


def measure(features, seeds, epochs):
    with tempfile.TemporaryDirectory() as folder:
        change = round_folder(features, Path(folder) / "rounded")
        arms = {"float16": features, "int8": Path(folder) / "rounded"}
        found = {
            arm: [accuracies(place, Path(folder) / f"{arm}-{seed}", seed, epochs) for seed in range(seeds)]
            for arm, place in arms.items()
        }
    recipe = read_json(Path(features) / "recipe.json")
    result = {key: recipe[key] for key in ("encoder", "tokens", "dim", "simulated")} | {"rms_change": change}
    result |= {"chance": found["int8"][0][2], "videos": found["int8"][0][3]}
    return result | {
        arm: {"SAGA": [one[0] for one in by_seed], "linear probe": [one[1] for one in by_seed]}
        for arm, by_seed in found.items()
    }


def differences(result, model="SAGA"):
    return np.subtract(result["int8"][model], result["float16"][model])


def harmless(result):
    ours = differences(result)
    low, high = interval(ours)
    return bool(low <= 0 <= high and abs(ours.mean()) <= np.std(result["float16"]["SAGA"], ddof=1))


def render(results) -> list[str]:
    """The table's lines."""
    lines = ["GEN-L, simulated clips; micro accuracy on test in per cent, mean ± standard deviation over seeds.", ""]
    lines += ["| tokens | RMS change | model | float16 | int8 | difference by seed | chance | test clips | seeds |"]
    lines += ["|" + " --- |" * 9]
    for result in results["features"]:
        for model in ("SAGA", "linear probe"):
            cells = [f"{result['encoder']} {result['tokens']} x {result['dim']}", f"{result['rms_change']:.4f}", model]
            for arm in ("float16", "int8"):
                values = 100 * np.array(result[arm][model])
                cells.append(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}")
            cells.append(", ".join(f"{100 * value:+.1f}" for value in differences(result, model)))
            cells += [f"{100 * result['chance']:.1f}", str(result["videos"]), str(len(result["int8"][model]))]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features", nargs="+", help="folders written by 01_extract_features.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    results = {"features": []}
    for features in args.features:
        results["features"].append(measure(features, args.seeds, args.epochs))
        write_json(ROOT / "results" / "int8.json", results)
        lines = render(results)
        (ROOT / "results" / "int8.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
