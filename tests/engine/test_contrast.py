"""MoCo in the one loop: resuming, refusals, the monitor, and the commands on its encoder."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image
from tiny_runs import TINY_FINETUNE, TINY_MOCO, TINY_MOCO_RESNET, TINY_PRETRAIN, TINY_RESNET

from passl_mae.config import load_config
from passl_mae.data.image_lists import index_folder
from passl_mae.data.image_sets import CropOnRead, ImageFiles, Reading
from passl_mae.data.loader import Batch
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop
from passl_mae.data.views import TwoCropsOnRead, TwoViews
from passl_mae.engine.build import build_trainer, evaluate
from passl_mae.engine.contrast import MoCoTask
from passl_mae.features import collect, extract_features
from passl_mae.knn import knn_accuracy
from passl_mae.models.weights import load_file, save_file
from tests.engine.test_trainer import (
    assert_same_arrays,
    close_logs,  # noqa: F401 - a fixture
    metrics_of,
    train_until,
)


@pytest.mark.parametrize("settings", [TINY_MOCO, TINY_MOCO_RESNET], ids=["vit", "resnet"])
def test_a_run_that_died_ends_bit_identical(write_config, tmp_path, settings):
    """Queue, pointer and key encoder too; views, shuffling, BatchNorm, saves mid-epoch."""
    overrides = ["Global.save_steps=2", "Global.print_batch_step=3"]
    build_trainer(load_config(write_config(settings, "whole"), overrides)).train()
    cut = write_config(settings, "cut")
    latest = [*overrides, "Global.checkpoints=latest"]
    for steps in (3, 7):
        train_until(load_config(cut, latest), steps)
    last = build_trainer(load_config(cut, latest))
    keys = 16 * (1 + last.model.symmetric)
    assert last.step == 6 and last.model.queue_ptr.item() == 6 * keys % last.model.queue_size
    last.train()
    for file in ("moco_pretrain.pdparams", "checkpoints/epoch_0002/model.pdparams"):
        whole, cut = (load_file(tmp_path / run / file) for run in ("whole", "cut"))
        assert {"queue", "queue_ptr"} <= whole.keys() and whole["queue_ptr"].dtype == np.int64
        assert_same_arrays(whole, cut)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")


def test_training_moves_query_key_and_queue_and_leaves_the_curve(write_config, tmp_path):
    trainer = build_trainer(load_config(write_config(TINY_MOCO)))
    before = {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = load_file(tmp_path / "run/moco_pretrain.pdparams")
    assert after.keys() == before.keys()
    for name in after:
        assert (after[name] != before[name]).any(), name
    np.testing.assert_allclose(np.linalg.norm(after["queue"], axis=0), 1, atol=1e-5)
    rows = metrics_of(tmp_path / "run")
    assert {"train_loss", "train_contrast_top1", "eval_knn_top1", "eval_embedding_knn_top1"} <= (
        rows[-1].keys()
    )
    best = json.loads((tmp_path / "run/result.json").read_text())
    assert {"test_knn_top1", "test_embedding_knn_top1"} <= best.keys()
    assert (tmp_path / "run/checkpoints/best").exists() and (tmp_path / "run/curves.png").exists()


def test_the_monitor_is_the_knn_of_features_and_embedding(write_config):
    """Against the library's own features and neighbours, on the images that it says."""
    trainer = build_trainer(load_config(write_config(TINY_MOCO)))
    task, model = trainer.task, trainer.model
    result = task.evaluate(model, trainer.eval_loader)
    assert model.training  # as it was
    model.eval()
    assert (
        len(task.bank.dataset) == 32 and task.bank.dataset.dataset is trainer.train_loader.dataset
    )
    bank, asked = (extract_features(model, loader) for loader in (task.bank, trainer.eval_loader))
    expected = knn_accuracy(bank, asked, 10, [5], 0.1)[5]["top1"]
    assert result["knn_top1"] == expected
    loaders = (task.bank, trainer.eval_loader)
    bank, asked = (collect(model, loader, model.encoder_q) for loader in loaders)
    assert result["embedding_knn_top1"] == knn_accuracy(bank, asked, 10, [5], 0.1)[5]["top1"]


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        (TINY_MOCO, ["Model.queue_size=50"], "queue_size 50 is not a multiple of the 16 keys of a"),
        (
            TINY_MOCO,
            ["Model.symmetric=true"],
            r"queue_size 48 is not a multiple of the 32 keys .*two keys of each of Data.batch_size "
            "16",
        ),
        (TINY_MOCO, ["Optimizer.accum_iter=2"], "accum_iter 2: MoCo's queue and key encoder move"),
        (TINY_MOCO, ["AMP.level=O2"], "AMP.level O2 rounds the weights, .*use O1"),
        (TINY_MOCO, ["Model.width=8"], "width is of a ResNet, and base_encoder is mae_vit_t_p4"),
        (TINY_MOCO, ["Model.bn_groups=4"], "bn_groups is of a ResNet, and base_encoder is mae_v"),
        (TINY_MOCO_RESNET, ["Model.depth=4"], "depth is of a Vision Transformer, and base_encoder"),
        (TINY_MOCO_RESNET, ["Model.bn_groups=3"], "bn_groups 3 does not divide the batch of 16 im"),
        (TINY_MOCO, ["Model.knn_k=33"], "knn_k 33 is more than the 32 training images"),
        (TINY_MOCO, ["Model.momentum=1.1"], "Model.momentum: .*less than or equal to 1, got 1.1"),
        (TINY_MOCO, ["Model.dims=8"], r"Model.dims: unknown key; did you mean dim\?"),
        (TINY_MOCO, ["Model.img_size=30"], "30x30 is not divisible by patch_size 8x8"),
        (TINY_MOCO, ["Data.train.color_jitter=[1, 1, 1]"], "color_jitter: .*at least 4 items"),
        (TINY_MOCO, ["Data.train.color_jitter=[1, 1, 1, 1]"], "hue must lie in 0..0.5, got 1"),
        (TINY_MOCO, ["Data.train.blur_sigma=[0, 1]"], "0 < low <= high, got"),
        (TINY_MOCO, ["Optimizer.layer_decay=0.5"], "a model with blocks; MoCo has none"),
        (TINY_PRETRAIN, ["Model.name=MoCO"], "Model.name: .*'MoCO'"),
    ],
)
def test_mistakes_are_refused_and_leave_nothing(
    write_config, tmp_path, settings, overrides, message
):
    path = write_config(settings)
    with pytest.raises(ValueError, match=message):
        build_trainer(load_config(path, overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 3, 8, 8), (4, 3, 3, 8, 8)])
def test_one_crop_is_refused(shape):
    batch = Batch(np.zeros(shape, np.float32), np.zeros(4), np.arange(4), BatchRandom((0,), 4))
    with pytest.raises(ValueError, match=r"MoCo takes two views of each image.*TwoViews"):
        MoCoTask(shuffle=False).prepare(batch)


def test_the_permutation_is_of_the_global_batch_and_shared():
    def parts(ranks):
        size = 12 // ranks
        images = np.zeros((size, 2, 1, 2, 2), np.float32)
        found = []
        for rank in range(ranks):
            random = BatchRandom((1, 2), 12, slice(rank * size, (rank + 1) * size))
            batch = Batch(images, np.zeros(size), np.arange(size), random)
            found.append(MoCoTask(shuffle=True).prepare(batch))
        return [np.concatenate([part[n] for part in found]) for n in ("shuffle", "unshuffle")]

    shuffle, unshuffle = parts(1)
    assert sorted(shuffle) == list(range(12)) and (shuffle != np.arange(12)).any()
    np.testing.assert_array_equal(shuffle[unshuffle], np.arange(12))
    for ranks in (2, 3):
        for one, several in zip((shuffle, unshuffle), parts(ranks)):
            np.testing.assert_array_equal(one, several)


@pytest.fixture
def folder(tmp_path):
    """48 PNGs of several sizes in two classes."""
    rng = np.random.default_rng(0)
    for i in range(48):
        path = tmp_path / "images" / f"c{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize("labels", [True, False])
def test_own_images_with_and_without_labels(write_config, tmp_path, folder, labels):
    data = {**TINY_MOCO["Data"], "name": "ImageFolder", "path": str(folder), "num_workers": 0}
    data = {**data, "labels": None if labels else False, "eval": {}, "val_fraction": 0.25}
    data["train"] = {**data["train"], "num_images": None}
    settings = {**TINY_MOCO, "Data": data, "Model": {**TINY_MOCO["Model"], "img_size": 32}}
    trainer = build_trainer(load_config(write_config(settings)))
    trainer.train()
    rows = metrics_of(tmp_path / "run")
    assert trainer.step == 4 and ("eval_knn_top1" in rows[-1]) == labels
    best = ["Global.finish_with=best", f"Global.output_dir={tmp_path / 'best'}"]
    if not labels:
        with pytest.raises(ValueError, match="finish_with: best needs labels to choose by"):
            build_trainer(load_config(write_config(settings), best))
        assert not (tmp_path / "best").exists()


def test_crops_on_reading_are_two_an_image(folder):
    crop = RandomResizedCrop((16, 12))
    files = ImageFiles(index_folder(folder), Reading((16, 12)), None, None, 0)
    two = TwoViews(Compose([RandomHorizontalFlip(), Normalize([0.5] * 3, [0.25] * 3)]))
    found, labels = TwoCropsOnRead(files, crop).fetch_random(np.arange(8), BatchRandom((0,), 8))
    assert found.shape == (8, 2, 16, 12, 3) and labels.tolist() == [0] * 8
    random = BatchRandom((0,), 8)
    for view in range(2):
        one, _ = CropOnRead(files, crop).fetch_random(np.arange(8), random)
        np.testing.assert_array_equal(found[:, view], one)
    assert all((a != b).any() for a, b in found)
    views = two(found, BatchRandom((1,), 8))
    random = BatchRandom((1,), 8)
    for view in range(2):
        np.testing.assert_array_equal(views[:, view], two.transform(found[:, view], random))


def test_without_labels_nothing_is_watched():
    task = MoCoTask(shuffle=False)
    assert task.best_metric is None and task.evaluate(None, []) == {}


def test_plain_batch_norm_is_not_shuffled_on_one_rank(write_config):
    def shuffles(name, *overrides):
        path = write_config(TINY_MOCO_RESNET, name)
        return build_trainer(load_config(path, overrides)).task.shuffle

    assert shuffles("groups") and not shuffles("off", "Model.shuffle_bn=false")
    assert not shuffles("plain", "Model.bn_groups=1")


def test_the_best_by_knn_can_be_the_finished_weights(write_config, tmp_path):
    trainer = build_trainer(load_config(write_config(TINY_MOCO), ["Global.finish_with=best"]))
    results = iter([{"knn_top1": 0.5}, {"knn_top1": 0.25}, {"knn_top1": 0.5}])
    trainer.task.evaluate = lambda model, loader: next(results)
    trainer.train()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["weights"] == "best" and result["epoch"] == 1


def classifier_of(settings):
    """The classifier's config that goes with a MoCo config's encoder."""
    if settings is TINY_MOCO:
        return TINY_FINETUNE
    return {**TINY_FINETUNE, "Model": {"name": "resnet18", **TINY_RESNET}}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(TINY_MOCO, marks=pytest.mark.slow), TINY_MOCO_RESNET],
    ids=["vit", "resnet"],
)
def test_the_commands_work_on_its_encoder(write_config, run_tool, tmp_path, settings):
    pretrain, finetune = write_config(settings, "pt"), write_config(classifier_of(settings), "ft")
    encoder = tmp_path / "encoder.pdparams"
    weights = [f"Global.pretrained_model={encoder}"]

    def ok(tool, *args):
        done = run_tool(tool, *args)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    ok("train_pretrain.py", "-c", pretrain)
    whole = tmp_path / "pt/moco_pretrain.pdparams"
    said = ok("evaluate.py", "-c", pretrain, "-o", f"Global.pretrained_model={whole}")
    tested = json.loads((tmp_path / "pt/result.json").read_text())["test_knn_top1"]
    assert "24 test images" in said and f"  knn_top1: {tested:.4f}" in said
    ok("extract_encoder.py", "--checkpoint", whole, "--output", encoder)
    said = ok("knn.py", "-c", finetune, "-o", *weights, "--k", 5, "--random")
    assert said.count("\n") >= 4 and str(encoder) in said and "random" in said
    probe = ["--epochs", 2, "--warmup-epochs", 1, "--batch-size", 16]
    assert "train top-1 %" in ok("linear_probe.py", "-c", finetune, "-o", *weights, *probe)
    features = tmp_path / "features.npz"
    ok("extract_features.py", "-c", finetune, "-o", *weights, "--output", features)
    assert np.load(features)["test_features"].shape[0] == 24
    ok("embed.py", "-c", finetune, "-o", *weights, "--output", tmp_path / "points.png")
    ok("train_finetune.py", "-c", finetune, "-o", *weights)
    asked = ["--checkpoint", whole, "--output", encoder, "--method", "mae"]
    done = run_tool("extract_encoder.py", *asked)
    assert done.returncode == 2 and "these are MoCo's weights, not MAE's" in done.stderr


def test_whole_weights_are_refused_by_the_classifier_with_the_way_out(write_config, tmp_path):
    trainer = build_trainer(load_config(write_config(TINY_MOCO)))
    file = tmp_path / "moco.pdparams"
    save_file({name: v.numpy() for name, v in trainer.model.state_dict().items()}, file)
    finetune = load_config(write_config(TINY_FINETUNE, "ft"), [f"Global.pretrained_model={file}"])
    with pytest.raises(ValueError, match=r"tools/extract_encoder.py --checkpoint .*moco.pdparams"):
        build_trainer(finetune)
    pretrain = load_config(write_config(TINY_MOCO, "again"), [f"Global.pretrained_model={file}"])
    assert_same_arrays(
        {n: v.numpy() for n, v in trainer.model.state_dict().items()},
        {n: v.numpy() for n, v in build_trainer(pretrain).model.state_dict().items()},
    )
    mae = load_config(write_config(TINY_PRETRAIN, "mae"), [f"Global.pretrained_model={file}"])
    with pytest.raises(ValueError, match=r"moco.pdparams"):
        build_trainer(mae)


def test_weights_can_be_evaluated_on_each_split(write_config, tmp_path):
    path = write_config(TINY_MOCO)
    build_trainer(load_config(path, ["Global.epochs=1"])).train()
    file = tmp_path / "run/moco_pretrain.pdparams"
    config = load_config(path, [f"Global.pretrained_model={file}"])
    rows = metrics_of(tmp_path / "run")
    count, found = evaluate(config, "val")
    assert count == 16 and found["knn_top1"] == rows[0]["eval_knn_top1"]
    paddle.seed(0)
    count, found = evaluate(config, "train")
    assert count == 64
