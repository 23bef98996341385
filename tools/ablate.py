"""Run a grid of pretrainings, finetunings and probes from one YAML; table and plot at the end.

    python tools/ablate.py -c configs/ablation/mask_ratio.yaml [-o seeds=[0] ...] [--dry-run]

-o sets keys of the YAML, and settings of every run: -o finetune.Data.path=cifar.tar.gz.
Leaves results.csv (one row a run), results.md and results.png in the grid's folder. The same
command goes on after a stop; values that were added are run, the others are not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import ablation as ab
from passl_mae import cli
from passl_mae.commands import run_command
from passl_mae.files import replacing

ROOT = Path(__file__).resolve().parents[1]


def main(args: argparse.Namespace) -> None:
    ablation = ab.load_ablation(args.config, args.override)
    output = ROOT / ablation.output_dir
    cells = ab.plan(ablation, args.config, ROOT)
    for number, cell in enumerate(cells, 1):
        described = ", ".join(f"{name} {value}" for name, value in cell.axes.items())
        print(f"\n[{number}/{len(cells)}] {described}, seed {cell.seed}", flush=True)
        for job in filter(None, (cell.pretrain, cell.finetune)):
            print(f"  {job.folder}")
        if not args.dry_run:
            try:
                run_cell(cell, ablation)
            except KeyboardInterrupt:
                print("\nstopped; the same command goes on", file=sys.stderr)
                sys.exit(130)
            ab.write_csv([ab.row_of(done, ROOT) for done in cells[:number]], output / "results.csv")
    if not args.dry_run:
        report(ablation, [ab.row_of(cell, ROOT) for cell in cells], output)


def run_cell(cell: ab.Cell, ablation: ab.Ablation) -> None:
    """What of a cell is not there yet."""
    if cell.pretrain is not None:
        train("train_pretrain.py", cell.pretrain, ablation)
        weights = cell.pretrain.folder / "mae_pretrain.pdparams"
        if not (ROOT / cell.encoder).exists():
            arguments = ["--checkpoint", str(weights), "--output", str(cell.encoder)]
            run_command(["tools/extract_encoder.py", *arguments], ROOT, trains=False)
    if ablation.finetuning:
        train("train_finetune.py", cell.finetune, ablation)
    for probe in ablation.probes:
        script = {"knn": ["knn.py", "--k", "20"], "linear": ["linear_probe.py"]}[probe]
        written = cell.finetune.folder / f"{probe}.json"
        if not (ROOT / written).exists():
            start = ["--random"] if cell.encoder is None else []
            config = [
                "-c",
                str(cell.finetune.config_file.resolve()),
                "-o",
                *cell.finetune.overrides,
            ]
            options = ablation.probe_options.get(probe, [])
            command = [
                f"tools/{script[0]}",
                *script[1:],
                *options,
                *config,
                *start,
                "--json",
                str(written),
            ]
            run_command(command, ROOT, trains=False)


def train(script: str, job: ab.Job, ablation: ab.Ablation) -> None:
    if (ROOT / job.folder / "result.json").exists():
        return
    resume = ["Global.checkpoints=latest"] if (ROOT / job.folder).exists() else []
    config = ["-c", str(job.config_file.resolve()), "-o", *job.overrides, *resume]
    ranks, log_dir = ablation.ranks, Path(ablation.output_dir) / "ranks"
    seconds = run_command(
        [f"tools/{script}", *config], ROOT, trains=True, ranks=ranks, log_dir=log_dir
    )
    print(f"  {seconds:.0f} s", flush=True)


def report(ablation: ab.Ablation, rows: list[dict], output: Path) -> None:
    from passl_mae.visualize import ablation_figure, save_figure

    summaries = ab.summarise(rows, list(ablation.grid))
    text = ab.table(summaries)
    with replacing(output / "results.md") as beside:
        beside.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{output / 'results.csv'}")
    if ablation.plot:
        figure = ablation_figure([s._asdict() for s in summaries], ablation.plot)
        save_figure(figure, output / "results.png")
        print(output / "results.png")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--dry-run", action="store_true", help="show the runs and their folders")
    cli.run(main, parser)
