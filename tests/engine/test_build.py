"""What a user can get wrong between config, data, model and folder: one clear line each."""

import numpy as np
import pytest
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.engine.build import build_model, build_schedule, build_trainer, load_pretrained
from passl_mae.models.weights import extract_encoder, load_file, save_file


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        (TINY_PRETRAIN, ["Data.batch_size=65"], "batch_size 65 is larger than the data set of 64"),
        (
            TINY_PRETRAIN,
            ["Model.patch_size=5"],
            "img_size 32x32 is not divisible by patch_size 5x5",
        ),
        (TINY_PRETRAIN, ["Model.num_heads=5"], "embed_dim 24 is not divisible by num_heads 5"),
        (TINY_PRETRAIN, ["Model.in_chans=1"], "Model.in_chans is 1 and Shapes has 3 channels"),
        (TINY_PRETRAIN, ["Model.mask_ratio=0.99"], "mask_ratio 0.99 keeps none of the 16 patches"),
        (
            TINY_PRETRAIN,
            ["Optimizer.accum_iter=3"],
            "Data.batch_size 16 does not divide by 1 ranks x",
        ),
        (TINY_PRETRAIN, ["Data.mean=[0.5]"], "mean and std need one number a channel, got 1 and 3"),
        (TINY_PRETRAIN, ["Data.name=Cifar10", "Data.path=no/such.tar.gz"], "no/such.tar.gz"),
        (TINY_PRETRAIN, ["LRScheduler.warmup_epochs=3"], "warmup_epochs 3 is more than Global.ep"),
        (TINY_PRETRAIN, ["LRScheduler.hold_epochs=1.6"], "0.5 and hold_epochs 1.6 are more than"),
        (
            TINY_PRETRAIN,
            ["LRScheduler.by=epoch", "LRScheduler.hold_epochs=0.5", "LRScheduler.warmup_epochs=1"],
            "takes whole hold_epochs, not 0.5",
        ),
        (TINY_PRETRAIN, ["LRScheduler.by=epoch"], "takes whole epochs of warm-up, not 0.5"),
        (TINY_PRETRAIN, ["Data.train.crop_padding=32"], "crop_padding 32 must be smaller than"),
        (TINY_PRETRAIN, ["Optimizer.blr=.inf"], "Optimizer.blr: .*finite number, got inf"),
        (TINY_PRETRAIN, ["Optimizer.beta1=1"], "Optimizer.beta1: .*less than 1, got 1"),
        (TINY_PRETRAIN, ["Model.mlp_ratio=0"], "Model.mlp_ratio: .*greater than 0, got 0"),
        (TINY_PRETRAIN, ["Model.img_size=[32]"], "Model.img_size: a size is a whole number of pix"),
        (TINY_FINETUNE, ["Model.drop_rate=1"], "Model.drop_rate: .*less than 1, got 1"),
        (TINY_PRETRAIN, ["Global.checkpoints=no/such"], "there is no checkpoint folder no/such"),
        (TINY_PRETRAIN, ["Global.pretrained_model=no.pdparams"], "no.pdparams"),
        (TINY_FINETUNE, ["Model.num_classes=7"], "Shapes has 10 classes: set Model.num_classes=10"),
        (
            TINY_FINETUNE,
            ["Data.train.labels_per_class=50"],
            "labels_per_class is 50 and the sm",
        ),
    ],
)
def test_mistakes_are_refused_and_leave_nothing(
    write_config, tmp_path, settings, overrides, message
):
    path = write_config(settings)
    with pytest.raises((ValueError, OSError), match=message):
        build_trainer(load_config(path, overrides))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_neither_overwritten_nor_blocked_for_resuming(
    write_config, tmp_path
):
    path = write_config(TINY_PRETRAIN)
    one = ["Global.epochs=1"]
    build_trainer(load_config(path, one)).train()
    before = (tmp_path / "run/mae_pretrain.pdparams").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        build_trainer(load_config(path, one))
    assert (tmp_path / "run/mae_pretrain.pdparams").read_bytes() == before
    elsewhere = tmp_path / "run/checkpoints/epoch_0001"
    other = write_config(TINY_PRETRAIN, "other")
    trainer = build_trainer(load_config(other, [f"Global.checkpoints={elsewhere}"]))
    assert (trainer.epoch, trainer.step) == (1, 4)


def test_going_back_in_the_same_folder_is_refused(write_config, tmp_path):
    """A second branch beside the first: `latest` would be the abandoned one's."""
    path = write_config(TINY_PRETRAIN)
    build_trainer(load_config(path)).train()
    first = tmp_path / "run/checkpoints/epoch_0001"
    with pytest.raises(ValueError, match=r"checkpoints after epoch_0001 \(up to epoch_0002\)"):
        build_trainer(load_config(path, [f"Global.checkpoints={first}"]))
    branch = write_config(TINY_PRETRAIN, "branch")
    assert build_trainer(load_config(branch, [f"Global.checkpoints={first}"])).epoch == 1


def test_a_failed_resume_leaves_the_curves_as_they_were(write_config, tmp_path):
    path = write_config(TINY_PRETRAIN)
    build_trainer(load_config(path, ["Global.use_visualdl=true"])).train()
    before = sorted((tmp_path / "run/vdl").iterdir())
    broken = ["Global.checkpoints=latest", "Data.batch_size=8", "Global.use_visualdl=true"]
    with pytest.raises(ValueError, match="steps an epoch"):
        build_trainer(load_config(path, broken))
    assert sorted((tmp_path / "run/vdl").iterdir()) == before


def test_latest_starts_fresh_where_there_is_nothing(write_config, capsys):
    trainer = build_trainer(load_config(write_config(TINY_PRETRAIN), ["Global.checkpoints=latest"]))
    assert trainer.epoch == 0 and "starting from the beginning" in capsys.readouterr().out


def test_resuming_says_what_changed_and_refuses_other_steps(write_config, capsys):
    path = write_config(TINY_PRETRAIN)
    build_trainer(load_config(path, ["Global.epochs=1"])).train()
    latest = "Global.checkpoints=latest"
    build_trainer(load_config(path, [latest, "Global.epochs=3"]))
    assert "resuming with Global.epochs = 3, which was 1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="4 steps an epoch and this run has 8: keep the data"):
        build_trainer(load_config(path, [latest, "Data.batch_size=8"]))
    with pytest.raises(ValueError, match=r"decoder_embed.weight|mis-shaped|shape"):
        build_trainer(load_config(path, [latest, "Model.decoder_embed_dim=32"]))


def test_pretrained_weights_reach_the_model_and_others_are_refused(write_config, tmp_path):
    pretrain = load_config(write_config(TINY_PRETRAIN))
    finetune = load_config(write_config(TINY_FINETUNE))
    whole = {name: value.numpy() for name, value in build_model(pretrain).state_dict().items()}
    save_file(whole, tmp_path / "mae.pdparams")
    encoder, _ = extract_encoder(whole)
    save_file(encoder, tmp_path / "encoder.pdparams")
    new = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")

    model = build_model(finetune)
    said = load_pretrained(model, str(tmp_path / "encoder.pdparams"), new)
    assert said.endswith(f"newly initialised: {', '.join(new)}")
    for name, value in encoder.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), value)
    with pytest.raises(ValueError, match=r"tools/extract_encoder.py --checkpoint .*mae.pdparams"):
        load_pretrained(model, str(tmp_path / "mae.pdparams"), new)
    with pytest.raises(ValueError, match="head"):
        load_pretrained(model, str(tmp_path / "encoder.pdparams"))
    assert load_file(tmp_path / "encoder.pdparams").keys() == encoder.keys()


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_and_order_follow_from_the_seed(write_config, seed):
    def first_batch_and_weights(name):
        trainer = build_trainer(
            load_config(write_config(TINY_PRETRAIN, name), [f"Global.seed={seed}"])
        )
        batch = next(iter(trainer.train_loader.epoch(1)))
        return batch.images, trainer.model.blocks[0].attn.qkv.weight.numpy()

    a, b = first_batch_and_weights("a"), first_batch_and_weights("b")
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_images_are_resized_only_when_asked(write_config, tmp_path):
    """CIFAR's 32 pixels into a model of 48: refused with the way out, then done."""
    from passl_mae.data.datasets import DATASETS
    from passl_mae.data.in_memory import InMemoryDataset

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    fake = InMemoryDataset(images, np.arange(32) % 10, list("abcdefghij"), [0.5] * 3, [0.25] * 3)
    original = DATASETS["Cifar10"]
    DATASETS["Cifar10"] = lambda split, path: fake
    try:
        path = write_config(TINY_PRETRAIN)
        overrides = ["Data.name=Cifar10", "Data.train.num_images=32", "Model.img_size=48"]
        with pytest.raises(
            ValueError, match="the images of Cifar10 are 32x32 and the model takes 48x48"
        ):
            build_trainer(load_config(path, overrides))
        trainer = build_trainer(load_config(path, [*overrides, "Data.train.crop=resized"]))
        batch = next(iter(trainer.train_loader.epoch(1)))
        assert batch.images.shape == (16, 3, 48, 48)
        assert next(iter(trainer.eval_loader)).images.shape == (6, 3, 48, 48)
        assert next(iter(trainer.test_loader)).images.shape == (16, 3, 48, 48)
    finally:
        DATASETS["Cifar10"] = original


def test_the_schedule_holds_its_peak_for_so_many_epochs(write_config):
    overrides = ["LRScheduler.warmup_epochs=0.5", "LRScheduler.hold_epochs=0.5", "Global.epochs=1"]
    schedule = build_schedule(load_config(write_config(TINY_PRETRAIN), overrides), 3)
    # rounded together: 1.5 + 1.5 steps are 2 + 1, not 2 + 2
    assert (schedule.warmup_epochs, schedule.hold_epochs, schedule.total_epochs) == (2, 1, 3)
