"""Finished runs on images of several sizes: a pretraining and a finetuning."""

import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
NAMES = ["apple", "zebra", "狗 dog"]


def write_images(root):
    """root/train: 3 classes of 12 PNGs, root/val: of 5; 40 to 50 pixels, each class its colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (40 + i % 5, 50 - i, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(root / split / name / f"{i:02d}.png")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """`.finetune`, `.pretrain`: folders of finished runs; `.images`: what they were trained on."""
    root = tmp_path_factory.mktemp("runs")
    write_images(root / "images")
    data = {
        "name": "ImageFolder",
        "path": str(root / "images"),
        "batch_size": 12,
        "eval_batch_size": 7,
        "num_workers": 0,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "train": {"crop": "resized"},
    }
    for name, settings in (("pretrain", TINY_PRETRAIN), ("finetune", TINY_FINETUNE)):
        model = {**settings["Model"], "img_size": [32, 24]}
        model |= {"num_classes": 3} if name == "finetune" else {"norm_pix_loss": True}
        config = {**settings, "Model": model, "Data": data}
        config["Global"] = {
            **settings["Global"],
            "output_dir": str(root / name),
            "eval_interval": 2,
        }
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        build_trainer(load_config(path)).train()
    log = logging.getLogger("passl_mae")
    for handler in list(log.handlers):
        handler.close()
        log.removeHandler(handler)
    return SimpleNamespace(
        root=root, finetune=root / "finetune", pretrain=root / "pretrain", images=root / "images"
    )


@pytest.fixture
def config_of(runs):
    """`config_of("finetune")`: the run's config, with its weights as the pretrained ones.

    Without the operators, as the predictors that it is compared with to the last bit.
    """

    def read(name, *overrides):
        weights = f"Global.pretrained_model={runs.root}/{name}/mae_{name}.pdparams"
        settings = [weights, "Global.cpu_ops=off", *overrides]
        return load_config(runs.root / name / "config.yaml", settings)

    return read


@pytest.fixture
def run_here(monkeypatch, capsys):
    """`run_here("predict.py", ...)`: a command in this process, which has imported paddle."""

    def run(tool, *args):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOLS / tool), run_name="__main__")
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run
