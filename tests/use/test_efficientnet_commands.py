"""The recipe on a folder of images with a text file beside each: trained, evaluated, used."""

import json
import re

import numpy as np
import numpy_efficientnet as slow
import pytest
import yaml
from PIL import Image

from passl_mae.config import load_config
from passl_mae.data.transforms import Normalize
from passl_mae.engine.build import build_evaluation
from passl_mae.features import collect
from passl_mae.models.weights import load_file, save_file

CLASSES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 images of 4 classes and of several sizes, img_NN.png, and their labels img_NN.txt."""
    root = tmp_path_factory.mktemp("list") / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 120, (24 + i, 30, 3), np.uint8)
        pixels[..., i % 3] += 30 * (i % CLASSES)
        Image.fromarray(pixels).save(root / f"img_{i:02d}.png")
        (root / f"img_{i:02d}.txt").write_text(f"img_{i:02d}.png, {i % CLASSES}\n")
    return root


def write(tmp_path, folder, name, **sections):
    """A config in the manner of configs/efficientnet, at 32 pixels."""
    config = {
        "Global": {"output_dir": str(tmp_path / name), "epochs": 1, "use_visualdl": False},
        "Model": {"name": "efficientnet_b0", "img_size": 32, "num_classes": CLASSES},
        "Data": {
            "name": "ImageList", "path": str(folder), "fit": "pad", "val_fraction": 0.2,
            "batch_size": 8, "eval_batch_size": 8, "num_workers": 0,
            "train": {
                "crop": "none", "shift": 0.05, "vflip": 0.5, "reprob": 0.5, "mixup": 0.2,
                "smoothing": 0.1,
            },
        },
        "Optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},
        "LRScheduler": {"warmup_start_lr": 4e-6, "warmup_epochs": 0.5},
    }  # fmt: skip
    for section, values in sections.items():
        config[section] = {**config[section], **values}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def succeeded(run):
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


def test_head_first_then_all_then_used(tmp_path, folder, run_here):
    """A frozen encoder keeps every bit, and BatchNorm's statistics stay where they are told to."""
    imagenet = tmp_path / "imagenet.pth"
    save_file(slow.random_state("b0", slow.Torchvision, num_classes=11), imagenet)
    start = {"pretrained_model": str(imagenet)}
    head = write(tmp_path, folder, "head", Global=start, Model={"freeze": "encoder"})
    out = succeeded(run_here("train_finetune.py", "-c", head))
    assert "torchvision's names mapped, its head of 11 left out (the model has 4 classes)" in out
    assert "images: 16 to learn from, 4 held out" in out
    start = {"pretrained_model": str(tmp_path / "head/mae_finetune.pdparams")}
    everything = write(tmp_path, folder, "all", Global=start, Model={"freeze_bn": True})
    succeeded(run_here("train_finetune.py", "-c", everything))
    first, last = (load_file(tmp_path / run / "mae_finetune.pdparams") for run in ("head", "all"))
    stem = load_file(imagenet)["features.0.0.weight"]
    np.testing.assert_array_equal(first["features.0.conv.weight"], stem)
    moved = {key for key in first if (first[key] != last[key]).any()}
    statistics = {key for key in first if key.endswith(("._mean", "._variance"))}
    assert len(statistics) == 2 * 49 and not moved & statistics
    assert {"features.0.conv.weight", "features.8.norm.weight", "head.weight"} <= moved

    run = tmp_path / "all"
    tuned = f"Global.pretrained_model={run}/mae_finetune.pdparams"
    out = succeeded(run_here("evaluate.py", "-c", everything, "-o", tuned))
    result = json.loads((run / "result.json").read_text())
    assert f"loss: {result['test_loss']:.4f}" in out
    out = succeeded(run_here("knn.py", "-c", everything, "-o", tuned, "--k", 3))
    assert "16 images of the training split, 4 of the test split" in out
    found = tmp_path / "found.json"
    succeeded(run_here("predict.py", "--run", run, folder, "--json", found))
    for what in ("classifier", "encoder"):
        out = succeeded(
            run_here("export_model.py", "--run", run, "--output", tmp_path / what, "--what", what)
        )
        differences = [float(text) for text in re.findall(r"differs by (\S+)", out)]
        assert len(differences) == 2 and max(differences) <= 1e-5
    exported = tmp_path / "exported.json"
    succeeded(
        run_here("predict.py", "--model", tmp_path / "classifier", folder, "--json", exported)
    )
    first, again = (json.loads(file.read_text())["images"] for file in (found, exported))
    assert len(first) == 20
    for a, b in zip(first, again):
        assert a["file"] == b["file"] and len(a["classes"]) == CLASSES
        shares = [{c["name"]: c["probability"] for c in image["classes"]} for image in (a, b)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-5)
    refused = run_here(
        "attention.py", "-c", everything, "-o", tuned, "--output", tmp_path / "a.png"
    )
    assert refused.returncode == 2
    assert "efficientnet_b0 has no attention to look at: give a ViT's config" in refused.stderr


@pytest.mark.parametrize(
    "name, layout, kind",
    [("b0", slow.Torchvision, "pth"), ("b3", slow.Timm, "safetensors")],
)
def test_others_weights_through_the_command_are_the_slow_network(
    tmp_path, folder, run_here, name, layout, kind
):
    state = slow.random_state(name, layout, num_classes=CLASSES)
    weights = f"Global.pretrained_model={tmp_path / f'weights.{kind}'}"
    save_file(state, tmp_path / f"weights.{kind}")
    path = write(tmp_path, folder, "run", Model={"name": f"efficientnet_{name}"})
    config = load_config(path, [weights, "Global.cpu_ops=off"])
    _, model, loader = build_evaluation(config, "test")
    pixels, labels = loader.dataset.fetch(np.arange(len(loader.dataset)))
    images = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(pixels, None)
    expected = slow.classify(state, images, name, layout)
    found, _ = collect(model, loader, model)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    shifted = expected - expected.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_shares[np.arange(len(labels)), labels].mean()
    shown = dict(
        re.findall(
            r"(\w+): (\d+\.\d{4})", succeeded(run_here("evaluate.py", "-c", path, "-o", weights))
        )
    )
    assert float(shown["loss"]) == pytest.approx(loss, abs=1.5e-4)
    assert float(shown["top1"]) == pytest.approx((expected.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("img_02.png, 4", r"img_02\.txt, line 1: label 4 is out of range, labels go from 0 \.\. 3"),
        ("img_02.png, -1", r"img_02\.txt, line 1: label -1 is out of range"),
        ("img_02.png", r"img_02\.txt, line 1: no label behind the path"),
        ("img_02.png, cat", r"img_02\.txt, line 1: no label behind the path"),
        ("img_2.png, 1", r"img_02\.txt, line 1: there is no image .*img_2\.png"),
        (None, r"img_02\.txt, line 1: there is no image beside it \(img_02\.png\)"),
    ],
)
def test_what_is_wrong_with_a_label_is_named_with_file_and_line(tmp_path, run_here, wrong, says):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8)).save(images / f"img_{i:02d}.png")
        (images / f"img_{i:02d}.txt").write_text(f"img_{i:02d}.png, {i}")
    if wrong is None:
        (images / "img_02.png").unlink()
    else:
        (images / "img_02.txt").write_text(wrong)
    run = run_here("train_finetune.py", "-c", write(tmp_path, images, "run"))
    assert run.returncode == 2 and re.match(r"error: .*" + says, run.stderr), run.stderr
    assert not (tmp_path / "run").exists()


def test_mistakes_in_one_list_name_its_line(tmp_path, folder, run_here):
    for line, says in (
        ("img_99.png 0", r"train\.txt, line 2: there is no image .*img_99\.png"),
        ("img_01.png 4", r"train\.txt, line 2: label 4 is out of range"),
        ("img_01.png", r"train\.txt, line 2: no label behind the path"),
    ):
        (tmp_path / "train.txt").write_text(f"img_00.png 0\n{line}\nimg_02.png 2\n")
        path = write(tmp_path, tmp_path / "train.txt", "run", Data={"image_root": str(folder)})
        run = run_here("train_finetune.py", "-c", path)
        assert run.returncode == 2 and re.match(r"error: .*" + says, run.stderr), run.stderr


def test_a_list_of_cifar_is_what_it_says(tmp_path, run_here, monkeypatch):
    """Pixels, labels and names, of a data set that is given instead of the download."""
    from passl_mae.data import datasets
    from passl_mae.data.image_lists import index_list, read_class_names
    from passl_mae.data.in_memory import InMemoryDataset

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(50) % 10

    class Fake(InMemoryDataset):
        CLASS_NAMES = datasets.Cifar10.CLASS_NAMES

        def __init__(self, split, path):
            super().__init__(pixels, labels, self.CLASS_NAMES, [0.5] * 3, [0.5] * 3)

    monkeypatch.setattr(datasets, "Cifar10", Fake)
    output = tmp_path / "cifar"
    succeeded(run_here("write_image_list.py", "--output", output, "--per-class", 3))
    assert (output / "train/img_00001.txt").read_text().startswith("img_00001.png, ")
    assert read_class_names(output / "classes.txt") == list(Fake.CLASS_NAMES)
    for split, per_class in (("train", 3), ("test", 5)):
        index = index_list(output / split)
        assert np.bincount(index.labels).tolist() == [per_class] * 10
        for path, label in zip(index.paths, index.labels):
            image = np.asarray(Image.open(path))
            (place,) = np.flatnonzero((pixels == image).all(axis=(1, 2, 3)))
            assert labels[place] == label
    again = run_here("write_image_list.py", "--output", output)
    assert again.returncode == 2 and "is there already: choose another --output" in again.stderr
