"""weights/: small, whole, described, and usable before anyone has trained anything."""

import hashlib
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from passl_mae.config import load_config
from passl_mae.engine.build import build_model, load_pretrained

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights"
FILES = {
    "cifar10_cpu_mae.safetensors": "configs/pretrain/cifar10_cpu.yaml",
    "cifar10_cpu_classifier.safetensors": "configs/finetune/cifar10_cpu.yaml",
}


def test_they_are_small_and_as_the_model_card_says():
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    found = sorted(path.name for path in WEIGHTS.glob("*.safetensors"))
    assert found == sorted(FILES)
    assert sum((WEIGHTS / name).stat().st_size for name in found) <= 6e6
    for name in found:
        digest = hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest()
        assert re.search(rf"{re.escape(name)}.*{digest}", card), f"{name}: {digest}"


@pytest.mark.parametrize("name", FILES)
def test_they_fit_their_configs(name):
    model = build_model(load_config(ROOT / FILES[name]))
    load_pretrained(model, str(WEIGHTS / name))  # refuses a key too many or too few
    assert all(np.isfinite(p.numpy()).all() for p in model.parameters())


def test_reconstructions_without_training(run_tool, tmp_path):
    """A gradient that the model has never seen: a loss of 1 is that of each patch's own mean."""
    rows, cols = np.mgrid[0:32, 0:32] / 31
    picture = np.stack([rows, cols, 1 - rows], axis=-1)  # [H, W, C], 0..1
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    images = ((picture - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    model = build_model(load_config(ROOT / FILES["cifar10_cpu_mae.safetensors"]))
    load_pretrained(model, str(WEIGHTS / "cifar10_cpu_mae.safetensors"))
    noise = np.random.default_rng(0).random((1, 64), dtype=np.float32)
    with paddle.no_grad():
        loss, _, _ = model(paddle.to_tensor(images), 0.75, paddle.to_tensor(noise))
    assert loss.item() < 0.1

    file = tmp_path / "gradient.png"
    Image.fromarray((255 * picture).astype(np.uint8)).save(file)
    config = ["-c", ROOT / "configs/pretrain/cifar10_cpu.yaml"]
    checkpoint = ["--checkpoint", WEIGHTS / "cifar10_cpu_mae.safetensors"]
    run = run_tool(
        "visualize.py", *config, *checkpoint, "--images", file, "--output", tmp_path / "out.png"
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out.png").stat().st_size > 3000


def test_the_classifier_answers_as_when_it_was_shipped():
    """Logits of a fixed picture: they change if the model or the reading of weights does."""
    model = build_model(load_config(ROOT / FILES["cifar10_cpu_classifier.safetensors"]))
    load_pretrained(model, str(WEIGHTS / "cifar10_cpu_classifier.safetensors"))
    model.eval()
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()[0]
    expected = np.load(ROOT / "tests/fixtures/shipped_classifier_logits.npy")
    np.testing.assert_allclose(logits, expected, atol=2e-4)
