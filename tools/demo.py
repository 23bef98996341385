"""The whole way in a few minutes: pretrain without labels, extract the encoder, finetune, draw.

    python tools/demo.py [--output-dir output/demo]

Runs the other commands and prints each, so that they can be typed by hand. Finetunes twice with one
config and few labels, from scratch and from the pretrained encoder, and compares the two. A demo
that was stopped goes on where it was; a finished one is shown again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae.cli import make_parser, run
from passl_mae.commands import run_command
from passl_mae.config import RunConfig, flatten, load_config
from passl_mae.files import read_json

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN_CONFIG = str(ROOT / "configs/pretrain/demo_shapes.yaml")
FINETUNE_CONFIG = str(ROOT / "configs/finetune/demo_shapes.yaml")
PLACES = {"Global.output_dir", "Global.pretrained_model", "Global.checkpoints"}


class Step(NamedTuple):
    title: str
    command: list[str]  # script and arguments
    makes: Path
    takes: Optional[Path] = None
    trains: Optional[RunConfig] = None  # the settings, where the step is a training run


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--output-dir", default="output/demo", help="folder of all that is made")
    parser.add_argument("--pretrain-config", default=PRETRAIN_CONFIG, help="YAML of step 1")
    parser.add_argument("--finetune-config", default=FINETUNE_CONFIG, help="YAML of steps 3 and 4")
    return parser


def main(args: argparse.Namespace) -> None:
    output = from_root(args.output_dir)
    steps = plan(output, from_root(args.pretrain_config), from_root(args.finetune_config))
    refuse_other_contents(output, steps)
    begin = time.perf_counter()
    ran = 0
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {step.title}", flush=True)
        ran += perform(step, output)
    if ran:
        print(f"\nAll of it took {time.perf_counter() - begin:.0f} s.")
    report(output, steps)
    if not ran:
        again = "make demo" if output == Path("output/demo") else shlex.join(["python", *sys.argv])
        print(f"\nNothing was left to do. To run it again: rm -r {output} && {again}")


def from_root(path: str) -> Path:
    """The path as seen from the project's folder, where the commands run."""
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(ROOT) if ROOT in absolute.parents else absolute


def plan(output: Path, pretrain_config: Path, finetune_config: Path) -> list[Step]:
    pretrain, encoder = output / "pretrain", output / "encoder.pdparams"
    weights, picture = pretrain / "mae_pretrain.pdparams", output / "reconstructions.png"

    def train(title: str, script: str, config: Path, run: Path, start: Path | None = None) -> Step:
        settings = [f"Global.output_dir={run}"]
        settings += [f"Global.pretrained_model={start}"] if start else []
        resolved = load_config(ROOT / config, settings)
        command = [script, "-c", str(config), "-o", *settings]
        weights_name = {"pretrain": "mae_pretrain", "classify": "mae_finetune"}[resolved.task]
        return Step(title, command, run / f"{weights_name}.pdparams", start, resolved)

    def finetune(title: str, run: Path, start: Path | None = None) -> Step:
        return train(title, "tools/train_finetune.py", finetune_config, run, start)

    extract = ["--checkpoint", str(weights), "--output", str(encoder)]
    draw = ["-c", str(pretrain_config), "--checkpoint", str(weights), "--output", str(picture)]
    return [
        train(
            "Pretrain on images without their labels",
            "tools/train_pretrain.py",
            pretrain_config,
            pretrain,
        ),
        Step("Take the encoder", ["tools/extract_encoder.py", *extract], encoder, weights),
        finetune("Finetune from scratch", output / "finetune_scratch"),
        finetune("Finetune from the encoder", output / "finetune_pretrained", encoder),
        Step("Draw", ["tools/visualize.py", *draw], picture, weights),
    ]


def refuse_other_contents(output: Path, steps: list[Step]) -> None:
    """ValueError where the folder holds something that this demo cannot go on with."""
    folder = ROOT / output
    ways_out = f"remove {output}, or choose another --output-dir"
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pretrain").is_dir():
        raise ValueError(f"{output} holds something else than a demo: choose another --output-dir")
    for step in steps:
        made, taken = ROOT / step.makes, step.takes and ROOT / step.takes
        if made.exists() and taken and not taken.exists():
            raise ValueError(f"{step.makes} is there, but not {step.takes}: {ways_out}")
        if made.exists() and taken and taken.stat().st_mtime > made.stat().st_mtime:
            raise ValueError(f"{step.takes} is newer than {step.makes}: {ways_out}")
        old_file = ROOT / step.makes.parent / "config.yaml"
        if step.trains and old_file.exists():
            old, new = (
                flatten(config.model_dump()) for config in (load_config(old_file), step.trains)
            )
            for key in sorted(old.keys() & new.keys() - PLACES):
                if old[key] != new[key]:
                    raise ValueError(
                        f"{step.makes.parent} was made with {key} = {old[key]!r}, which is "
                        f"{new[key]!r} now: {ways_out}"
                    )


def perform(step: Step, output: Path) -> bool:
    """Runs a step, unless what it makes is there; returns whether it ran.

    Raises:
        ValueError: the command failed; its own message.
    """
    if (ROOT / step.makes).exists():
        print(f"  {step.makes} is there already")
        return False
    command = step.command
    if step.trains and (ROOT / step.makes.parent).exists():
        command = [*command, "Global.checkpoints=latest"]
    try:
        seconds = run_command(command, ROOT, trains=bool(step.trains))
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from {output}", file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        raise ValueError(f"{step.title}: {error}") from None
    print(f"  {seconds:.0f} s", flush=True)
    return True


def report(output: Path, steps: list[Step]) -> None:
    runs = [step for step in steps if step.trains]
    pretrain, scratch, pretrained = (step.makes.parent for step in runs)
    data = runs[-1].trains.Data
    labels = data.train.labels_per_class
    top1 = {run: 100 * result_of(run)["test_top1"] for run in (scratch, pretrained)}
    gain = top1[pretrained] - top1[scratch]
    few = f"{labels} labels a class" if labels else "all labels"
    print(
        f"\nTop-1 on the test images of {data.name} after finetuning with {few}\n"
        f"  from scratch              {top1[scratch]:5.1f} %\n"
        f"  from the MAE's encoder    {top1[pretrained]:5.1f} %   ({gain:+.1f} points)\n"
        "\nPictures"
    )
    pictures = {
        "reconstructions": steps[-1].makes,
        "curves of pretraining": pretrain / "curves.png",
        "from scratch": scratch / "curves.png",
        "from the encoder": pretrained / "curves.png",
    }
    for name, path in pictures.items():
        print(f"  {name:24s}  {path}")
    print(f"\nIn a browser: visualdl --logdir {output}")


def result_of(run: Path) -> dict:
    """What a finished run found on the test images."""
    return read_json(ROOT / run / "result.json")


if __name__ == "__main__":
    run(main, parser())
