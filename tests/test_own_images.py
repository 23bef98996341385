"""One's own images through the commands: folders and lists, cache and none, damaged files."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import dump_config, load_config
from passl_mae.engine.build import build_trainer
from passl_mae.engine.build_images import build_image_sets, files_digest

PLAIN = {"crop": "pad", "crop_padding": 2}


@pytest.fixture
def images(tmp_path):
    """train: 3 classes of 12 PNGs of 32 x 32, val: of 4; each class has its colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(["apple", "zebra", "狗 dog"]):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return tmp_path / "images"


def own(settings, images, **data):
    data = {"name": "ImageFolder", "path": str(images), "batch_size": 12, "num_workers": 1, **data}
    data = {"eval_batch_size": 12, "train": PLAIN, **data}
    model = settings["Model"]
    model = {**model, "num_classes": 3} if settings is TINY_FINETUNE else model
    return {**settings, "Model": {**model, "img_size": 32}, "Data": data}


def succeeded(run):
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "ips")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_own_images_from_pretraining_to_evaluation(write_config, run_tool, tmp_path, images):
    """With the cache and without, in the same numbers; the label set and order are the folders'."""
    cache = tmp_path / "cache"
    for name, settings in (("pt", TINY_PRETRAIN), ("ft", TINY_FINETUNE)):
        tool = {"pt": "train_pretrain.py", "ft": "train_finetune.py"}[name]
        for kind, data in (("plain", {}), ("cached", {"cache": str(cache)})):
            config = write_config(own(settings, images, **data), f"{name}_{kind}")
            out = succeeded(run_tool(tool, "-c", config))
            assert "36 image files, 3 classes" in out and "12 image files, 3 classes" in out
            assert (", cached at 32x32" in out) == (kind == "cached")
            assert ("building the cache" in out) == (kind == "cached" and name == "pt")
        assert rows(tmp_path / f"{name}_plain") == rows(tmp_path / f"{name}_cached")

    tuned = f"Global.pretrained_model={tmp_path / 'ft_plain/mae_finetune.pdparams'}"
    finetune = tmp_path / "ft_cached/config.yaml"
    confusion = tmp_path / "confusion.png"
    out = succeeded(run_tool("evaluate.py", "-c", finetune, "-o", tuned, "--confusion", confusion))
    shown = dict(re.findall(r"(\w+): (\d\.\d{4})", out))
    tested = json.loads((tmp_path / "ft_plain/result.json").read_text())
    assert tested["test_images"] == 12
    assert tested == json.loads((tmp_path / "ft_cached/result.json").read_text())
    for key in ("top1", "loss"):
        assert float(shown[key]) == pytest.approx(tested[f"test_{key}"], abs=6e-5)
    assert "狗 dog" in out and confusion.exists()
    knn = ["knn.py", "-c", finetune, "-o", tuned, "--k", 3, "--cache", tmp_path / "features"]
    assert "36 images of the training split, 12 of the test split" in succeeded(run_tool(*knn))


def test_statistics_for_the_config(write_config, run_tool, tmp_path, images):
    files = sorted((images / "train").rglob("*.png"))
    pixels = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 3) for file in files]) / 255
    expected = {"mean": pixels.mean(axis=0), "std": pixels.std(axis=0)}
    config = write_config(own(TINY_PRETRAIN, images))
    for arguments in (["-c", config], [images / "train"]):
        out = succeeded(run_tool("dataset_stats.py", *arguments))
        assert "36 " in out and f"{36 * 32 * 32} pixels" in out
        for name, values in yaml.safe_load(out).items():
            np.testing.assert_allclose(values, expected[name], atol=6e-7)
    run = run_tool("dataset_stats.py")
    assert (run.returncode, run.stderr) == (2, "error: give a folder of images or -c CONFIG\n")
    # what would be left aside is refused
    run = run_tool("dataset_stats.py", images / "train", "-o", "Model.in_chans=1")
    assert (run.returncode, run.stdout) == (2, "") and "error: -o overrides the keys" in run.stderr
    run = run_tool("dataset_stats.py", "-c", config, "--channels", "1")
    assert (run.returncode, run.stdout) == (2, "") and "Model.in_chans" in run.stderr


def loaders_of(trainer):
    return trainer.train_loader, trainer.eval_loader, trainer.test_loader


def test_a_folder_for_validation_is_watched_and_one_for_the_test_kept(
    write_config, tmp_path, images
):
    (images / "val").rename(images / "test")
    (images / "val/zebra").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (32, 32), (i, 90, 0)).save(images / f"val/zebra/{i}.png")
    path = write_config(own(TINY_FINETUNE, images, num_workers=0))
    trainer = build_trainer(load_config(path))
    assert [len(loader.dataset) for loader in loaders_of(trainer)] == [36, 5, 12]
    assert trainer.eval_loader.dataset.labels.tolist() == [1] * 5  # numbered as in training
    assert next(iter(trainer.eval_loader)).indices.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"images has a folder for validation: Data\.val_fraction"):
        build_trainer(load_config(path, ["Data.val_fraction=0.2", "Global.output_dir=nowhere"]))
    # they are what the best weights are chosen by
    best = ["Global.finish_with=best", f"Global.output_dir={tmp_path / 'best'}", "Global.epochs=1"]
    build_trainer(load_config(path, best)).train()
    assert json.loads((tmp_path / "best/result.json").read_text())["weights"] == "best"
    shutil.rmtree(images / "val")
    with pytest.raises(ValueError, match=r"finish_with: best needs held-out images .* train/, val"):
        build_trainer(load_config(path, [*best, "Global.output_dir=nowhere"]))
    assert not Path("nowhere").exists()


def losses(config, overrides=()):
    trainer = build_trainer(load_config(config, overrides))
    trainer.train()
    return rows(trainer.run.root)


@pytest.mark.parametrize("cache", [False, True])
def test_unreadable_files_stop_the_run_or_are_left_out_and_listed(
    write_config, tmp_path, images, capsys, cache
):
    bad = [images / "train/apple/03.png", images / "val/zebra/01.png"]
    bad[0].write_bytes(b"")
    bad[1].unlink()
    bad[1].symlink_to("nowhere.png")
    data = {"cache": str(tmp_path / "cache")} if cache else {}
    config = write_config(own(TINY_PRETRAIN, images, num_workers=0, **data))
    with pytest.raises(ValueError, match=r"/(apple/03|zebra/01)\.png cannot be read as an im"):
        losses(config)
    skip = write_config(own(TINY_PRETRAIN, images, num_workers=0, **data), "skip")
    assert len(losses(skip, ["Data.on_error=skip"])) == 2
    out = capsys.readouterr().out
    assert "35 image files, 3 classes, 1 unreadable ones left out" in out
    assert "11 image files, 3 classes, 1 unreadable ones left out" in out
    assert f"left out: {bad[0]} cannot be read as an image: the file is empty (0 bytes)" in out
    listed = (tmp_path / "skip/skipped_images.txt").read_text().splitlines()
    assert [line.split(" cannot be read")[0] for line in listed] == [str(file) for file in bad]
    assert "a dangling link to nowhere.png" in listed[1]


def test_two_ranks_see_what_one_sees(write_config, run_tool, tmp_path, images):
    """Crops of whole images, and the same files left out on both (rank 0 alone looks for them)."""
    (images / "train/apple/03.png").write_bytes(b"text")
    data = {"train": {"crop": "resized"}, "on_error": "skip", "val_fraction": 0.2}
    one = losses(write_config(own(TINY_PRETRAIN, images, num_workers=0, **data), "one"))
    two = write_config(own(TINY_PRETRAIN, images, **data), "two")
    out = succeeded(run_tool("train_pretrain.py", "-c", two, "-o", "Global.device=cpu", ranks=2))
    assert "35 image files, 3 classes, 1 unreadable ones left out" in out
    for a, b in zip(one, rows(tmp_path / "two")):
        assert a == {key: pytest.approx(value, rel=1e-4) for key, value in b.items()}
    assert (tmp_path / "two/skipped_images.txt").read_text().count("03.png") == 1


def test_lists_and_folders_of_the_same_images_train_alike(write_config, tmp_path, images):
    for split in ("train", "val"):
        lines = [
            f"{path.relative_to(images)} {label}\n"
            for label, name in enumerate(["apple", "zebra", "狗 dog"])
            for path in sorted((images / split / name).iterdir())
        ]
        (tmp_path / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    listed = {"name": "ImageList", "path": str(tmp_path / "train.txt"), "image_root": str(images)}
    listed["eval"] = {"path": str(tmp_path / "val.txt")}
    ours = losses(write_config(own(TINY_FINETUNE, images, num_workers=0), "folder"))
    assert ours == losses(write_config(own(TINY_FINETUNE, images, num_workers=0, **listed), "list"))


def test_a_flat_folder_is_split_and_crops_see_whole_images(write_config, tmp_path, images):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted((images / "train").rglob("*.png"))):
        Image.open(file).resize((40 + i, 50)).save(flat / f"{i:02d}.jpg")
    data = {"val_fraction": 0.25, "train": {"crop": "resized"}, "num_workers": 0}
    config = write_config(own(TINY_PRETRAIN, flat, **data))
    trainer = build_trainer(load_config(config))
    assert [len(loader.dataset) for loader in loaders_of(trainer)] == [27, 9, 9]
    trainer.train()
    assert np.isfinite([row["train_loss"] for row in rows(tmp_path / "run")]).all()
    grey = write_config(own(TINY_PRETRAIN, flat, **data), "grey")
    one = ["Model.in_chans=1", "Data.mean=[0.4]", "Data.std=[0.2]"]
    assert next(iter(build_trainer(load_config(grey, one)).train_loader.epoch(0))).images.shape == (
        12, 1, 32, 32,
    )  # fmt: skip


def test_kept_features_know_the_files(write_config, images):
    config = load_config(write_config(own(TINY_FINETUNE, images)))
    before = files_digest(config)
    assert before == files_digest(config)
    os.utime(images / "val/apple/00.png", (1, 1))
    changed = files_digest(config)
    (images / "train/apple/00.png").rename(images / "train/zebra/99.png")
    assert len({before, changed, files_digest(config)}) == 3


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        (TINY_PRETRAIN, ["Data.path=no/such"], "no/such: no such folder"),
        (TINY_PRETRAIN, ["Data.path=null"], "ImageFolder needs path, the folder or list"),
        (TINY_PRETRAIN, ["Data.image_root=x"], "image_root is for ImageList"),
        (TINY_PRETRAIN, ["Data.cache_size=40"], "cache_size is of the cache: set cache, too"),
        (TINY_PRETRAIN, ["Data.max_pixels=900000000"], r"Data\.max_pixels: .*178956970"),
        (TINY_PRETRAIN, ["Data.on_error=ignore"], r"Data\.on_error: .*'stop' or 'skip'"),
        (TINY_PRETRAIN, ["Data.num_workers=-1"], r"Data\.num_workers: .*or equal to 0"),
        (TINY_PRETRAIN, ["Data.crop_pct=0"], r"Data\.crop_pct: .*greater than 0"),
        (TINY_PRETRAIN, ["Data.pad_fill=0"], "pad_fill is of fit: pad"),
        (TINY_PRETRAIN, ["Data.fit=pad", "Data.train.crop=resized"], "fit: pad is for train.crop"),
        (TINY_PRETRAIN, ["Data.train.shift=1"], r"Data\.train\.shift: .*less than 1"),
        (TINY_PRETRAIN, ["Model.in_chans=2"], r"with 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\) channels"),
        (TINY_PRETRAIN, ["Model.in_chans=1"], r"of 1 channels need Data\.mean and Data\.std"),
        (TINY_PRETRAIN, ["Data.max_pixels=1000"], r"32 x 32 pixels are more than Data\.max_pixels"),
        (TINY_FINETUNE, ["Model.num_classes=4"], "ImageFolder has 3 classes: set Model"),
        (TINY_FINETUNE, ["Data.labels=false"], "the images have no labels, and mae_vit_t_p4"),
        (TINY_PRETRAIN, ["Data.path={images}/train"], "train has no images to test on: set"),
        (TINY_PRETRAIN, ["Data.train.num_images=99"], "99 and the training data has 36"),
        (TINY_FINETUNE, ["Data.class_names=no.txt"], r"no\.txt: No such file"),
        (TINY_PRETRAIN, ["Data.name=Shapes", "Data.path=null"], "num_workers is for ImageFold"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_and_leave_nothing(
    write_config, tmp_path, images, settings, overrides, message
):
    path = write_config(own(settings, images, num_workers=0 if "Shapes" not in message else 1))
    overrides = [text.format(images=images) for text in overrides]
    if "Shapes" in str(overrides):
        overrides.append("Data.num_workers=1")
    with pytest.raises((ValueError, OSError), match=message):
        build_trainer(load_config(path, overrides)).train()
    if "max_pixels" not in message:  # found out by the first batch
        assert not (tmp_path / "run").exists()


def test_padding_comes_from_the_config(write_config, images):
    """Of a wide black image the whole is kept, in the middle of the filling."""
    Image.new("RGB", (64, 32)).save(images / "train/apple/00.png")
    for number, options in enumerate(({}, {"cache": str(images / "cache")})):
        own_data = own(TINY_PRETRAIN, images, num_workers=0, fit="pad", pad_fill=200, **options)
        config = load_config(write_config(own_data, f"p{number}"))
        pixels = build_image_sets(config, (32, 32), 3)[0].fetch(np.array([0]))[0][0]
        assert (pixels[:8] == 200).all() and (pixels[24:] == 200).all()
        assert (pixels[8:24] == 0).all()


def test_a_config_of_own_images_is_dumped_and_loaded(write_config, images):
    config = load_config(write_config(own(TINY_PRETRAIN, images, cache=True, cache_size=[40, 40])))
    again = images / "again.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again) == config
