"""What made this file? A report at up to five levels for any video or image: real or fake, generation task, Stable
Diffusion version, team, generator, with calibrated probabilities, or "unknown generator", or "too little evidence".

reads   files, folders of them, or - for a list on standard input; runs/<run>/<level>.keras and .json (02, 03),
        calibration.json and .npz (--calibrate); a run may be a folder, a zip or a hf://, kaggle:// handle
writes  a report to standard output; --json (report/report.schema.json, a line per file), --html, --csv

    python attribute_video.py --calibrate --run runs/zoo --features features/zoo      once per run
    python attribute_video.py clip.mp4 --run runs/zoo --html report.html
    python attribute_video.py --enrol Kling kling/*.mp4 --run runs/zoo                a new generator, no training
    find evidence -name '*.mp4' | python attribute_video.py - --json reports.jsonl

The run says which encoder, frame rate and windows; all levels share one decoding and one pass of the encoder. Exit
status 1 when a file could not be read; all others are answered. Seconds per clip on two cores with `dct`.
"""

import argparse
import os
from contextlib import ExitStack
from functools import partial
from itertools import chain

from basics.running import InputError, fraction, positive, printable, run_script, seed
from tokens.encoders import DTYPES
from tokens.generators import is_name

# The names in report/scores.py, which takes longer to import than --help may:
SCORES = ("maximum softmax", "energy", "nearest class mean", "Mahalanobis", "k-nearest neighbours", "T-Sig")
NAMINGS = ("mean", "mahalanobis", "neighbours")


def get_args(argv=None):
    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=defaults)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="videos, images, folders, or - for a list on standard input")
    add("--run", type=path, default="runs/zoo", help="folder, zip or handle of a trained run")
    lines = "write a JSON object per line and file; - is standard output, without the text"
    add("--json", type=path, metavar="PATH", help=lines)
    add("--resume", action="store_true", help="leave out files whose bytes --json PATH answers already, and add to it")
    add("--html", type=path, metavar="PATH", help="write one page that needs nothing else")
    add("--csv", type=path, metavar="PATH", help="write a row per file")
    add("--max-files", type=positive, help="answer no more files than this")
    add("--max-windows", type=positive, help="analyse at most this many windows of a file, evenly spread")
    add("--dtype", choices=("float32", "mixed_bfloat16"), help="what the transformers compute in; default: the run's")
    add("--encoder", type=path, help="the encoder's preset or folder; default: the one in the run's recipe")
    weights = "mobilenet: weights for a machine that cannot download them"
    add("--encoder-weights", type=path, metavar="FILE", help=weights)
    add("--encoder-dtype", choices=DTYPES, help="what a pretrained encoder computes in; default: the run's")
    add("--encoder-batch", type=positive, default=64, help="frames per call of the encoder")
    add("--threads", type=positive, default=os.cpu_count(), help="files decoded at once")
    exported = "write the calibrated run with a model card to a .zip or folder, and end"
    add("--export", type=path, metavar="PATH", help=exported)
    enrolled = "add the generator that made the files to the run, without training, and end"
    add("--enrol", type=generator, metavar="NAME", help=enrolled)
    nearest = "mean, for one to five clips; mahalanobis, from ten on; five neighbours"
    add("--method", choices=NAMINGS, default="mean", help=f"--enrol: how it is then named, by the nearest {nearest}")
    add("--calibrate", action="store_true", help="calibrate the run on val clips, measure it on test clips, and end")
    add("--features", type=path, default="features/zoo", help="--calibrate: the features that the run was trained on")
    add("--false-rejection", type=fraction, default=0.05, help="--calibrate: fraction of known clips rejected")
    add("--score", choices=SCORES, default="Mahalanobis", help="--calibrate: the score that detects unknown generators")
    add("--limit", type=positive, default=200, help="--calibrate: at most this many clips per generator in each split")
    add("--seed", type=seed, default=0, help="--calibrate: seed of the choice of those clips")
    args = parser.parse_args(argv)
    reports = args.json or args.html or args.csv
    if (args.calibrate or args.export) and (args.files or args.enrol or reports):
        parser.error("--calibrate and --export take a run, no files and no reports")
    if not (args.files or args.calibrate or args.export):
        parser.error("name a file, a folder, or - for a list on standard input")
    if not args.false_rejection:
        parser.error("--false-rejection is above 0")
    if args.enrol and reports:
        parser.error("--enrol writes no reports")
    owners = dict.fromkeys(("features", "false_rejection", "score", "limit", "seed"), "calibrate") | {"method": "enrol"}
    for flag, owner in owners.items():
        if getattr(args, flag) != parser.get_default(flag) and not getattr(args, owner):
            parser.error(f"--{flag.replace('_', '-')} belongs to --{owner}, which keeps it in the run")
    if reports:
        from report import outputs

        args.json = outputs.STANDARD_OUTPUT if args.json == "-" else args.json
        taken = [outputs.identity(path) for path in (args.json, args.html, args.csv) if path]
        if len(set(taken)) < len(taken):
            parser.error("--json, --html and --csv want a file each")
        if any(path and os.path.isfile(path) and outputs.is_standard_output(path) for path in (args.html, args.csv)):
            parser.error("standard output goes to the file of --html or --csv; name another one")
    if args.resume and (not args.json or outputs.is_standard_output(args.json) or args.csv or args.html):
        parser.error("--resume continues the file of --json alone")
    return args


def path(text):
    """A path; an empty one is none."""
    if not text:
        raise ValueError(text)
    return text


def generator(text):
    """A name that can be printed and has a letter or a digit."""
    if not (is_name(text) and any(map(str.isalnum, text))):
        raise ValueError(text)
    return text


def attribute(paths, run="runs/zoo", encoder=None, **options) -> list[dict]:
    """A report per file, as report/report.schema.json describes it: attribute of report/answer.py."""
    from report import answer  # here, since it imports Keras

    return answer.attribute(paths, run, encoder, **options)


def main(argv=None):
    args = get_args(argv)
    from report import answer, calibrate, enrol, look, outputs, run, text

    # ---------------------------------------------------------------- about the run
    if args.calibrate:
        chosen = args.false_rejection, args.score, args.limit, args.seed
        calibrate.print_calibration(calibrate.calibrate(args.run, args.features, *chosen))
    if args.export:
        run.export_run(args.run, args.export)
        print(printable(f"{args.export}: the run, and a model card to be completed"))
    if args.calibrate or args.export:
        return None

    # ---------------------------------------------------------------- what is read and written
    openers = {"--json": partial(outputs.open_json, add=args.resume)}
    openers |= {"--csv": outputs.open_csv, "--html": outputs.open_html}
    written = {flag: path for flag in openers if (path := getattr(args, flag[2:]))}
    read = list(filter(None, (args.run, args.encoder, args.encoder_weights)))
    given = ["/dev/stdin"] if args.files == ["-"] else look.expand(args.files)
    outputs.refuse_inputs(written, chain(read, given))
    outputs.refuse_places(written, read)
    outputs.refuse_inputs(written, [os.path.join(args.run, name) for name in run.FILES])  # a hard link is elsewhere
    batches = look.batches(args.files, outputs.answered(args.json) if args.resume else None, args.max_files)

    # ---------------------------------------------------------------- load
    loaded = run.load_run(args.run, args.dtype)
    encoder = run.load_encoder(loaded.features, args.encoder, args.encoder_weights, args.encoder_dtype)
    options = {"max_windows": args.max_windows, "encoder_batch": args.encoder_batch, "threads": args.threads}
    files = failed = 0
    if args.enrol:
        paths = [path for batch, _ in batches for path in batch]
        result = enrol.enrol(args.enrol, paths, loaded, encoder, args.method, **options)
        enrol.print_enrolled(result)
        files, failed = len(paths), result["unread"]

    # ---------------------------------------------------------------- answer
    options["images"], has_text = bool(args.html), not outputs.is_standard_output(args.json)
    with ExitStack() as stack:
        writers = [stack.enter_context(openers[flag](path)) for flag, path in written.items()]
        for batch, digests in batches:
            outputs.refuse_inputs(written, batch)
            for report in answer.answers(batch, loaded, encoder, digests=digests, **options):
                files, failed = files + 1, failed + (report["error"] is not None)
                if has_text:
                    print(text.text_report(report), flush=True)
                for write in writers:
                    write(report)
    if failed:
        raise InputError(f"{failed} of {files} files could not be read; their lines say why")
    return files


if __name__ == "__main__":
    run_script(main, interrupted="the answers so far are kept; --resume continues the file of --json")
