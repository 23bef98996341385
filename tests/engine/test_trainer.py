"""The loop: the same numbers however a run is cut into pieces, ranks or sessions."""

import json
import logging
import re

import numpy as np
import paddle
import pytest
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer
from passl_mae.models.weights import load_file
from passl_mae.optim.state import load_optimizer_state, optimizer_state


def metrics_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "ips")} for row in rows]


def assert_same_arrays(first, second):
    assert first.keys() == second.keys() and len(first) > 0
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


class Killed(BaseException):
    """Stands for the end of the process: nothing in the library may catch it and go on."""


def train_until(config, steps):
    """Trains, and dies without a word after so many steps, as with kill -9."""
    trainer = build_trainer(config)
    step = trainer.train_step

    def dying(inputs, batch):
        if trainer.step == steps:
            raise Killed
        return step(inputs, batch)

    trainer.train_step = dying
    with pytest.raises(Killed):
        trainer.train()
    paddle.seed(999)  # another process would not share the generator's state either


@pytest.mark.parametrize("settings", [TINY_PRETRAIN, TINY_FINETUNE], ids=["pretrain", "finetune"])
@pytest.mark.parametrize("deaths", [(5,), (3,), (2, 4, 7)], ids=str)
def test_a_run_that_died_ends_bit_identical(write_config, tmp_path, settings, deaths):
    """With crops, flips, masks, dropout, drop path, clipping, warm-up, moments, mid-epoch saves."""
    overrides = ["Global.save_steps=2", "Optimizer.accum_iter=2", "Global.print_batch_step=3"]
    overrides.append("Global.use_visualdl=true")
    if settings is TINY_FINETUNE:
        overrides += ["Optimizer.ema_decay=0.9", "Data.train.mixup=0.8", "Data.train.cutmix=1.0"]
        overrides += ["Data.train.reprob=0.25", "Data.train.rand_augment=5"]
    build_trainer(load_config(write_config(settings, "whole"), overrides)).train()

    cut = write_config(settings, "cut")
    latest = [*overrides, "Global.checkpoints=latest"]
    for steps in deaths:
        train_until(load_config(cut, latest), steps)
    last = build_trainer(load_config(cut, latest))
    assert last.step == deaths[-1] // 2 * 2  # it did not begin anew
    last.train()

    name = f"{last.task.weights_name}.pdparams"
    assert_same_arrays(load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name))
    for file in ("model.pdparams", "optimizer.pdopt", "ema.pdparams"):
        whole, cut = (tmp_path / run / "checkpoints/epoch_0002" / file for run in ("whole", "cut"))
        assert whole.exists() == cut.exists()
        if whole.exists():
            assert_same_arrays(load_file(whole), load_file(cut))
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    assert scalars_of(tmp_path / "whole") == scalars_of(tmp_path / "cut")


def scalars_of(folder):
    """{tag: [(step, value), ...]} as VisualDL shows them: of the newest file only."""
    from visualdl import LogReader

    newest = max((folder / "vdl").iterdir())
    reader = LogReader(file_path=str(newest))
    names = [tag.rsplit("/", 1)[-1] for tag, kind in reader.tags().items() if kind == "scalar"]
    names = [name.replace("%", "/") for name in names]
    found = {n: [(d.id, d.value) for d in reader.get_data("scalar", n)] for n in names}
    found.pop("Train/ips")
    assert len(found) >= 3
    return found


def test_accumulated_pieces_give_the_step_of_the_whole_batch(write_config, tmp_path):
    for name, pieces in (("one", 1), ("four", 4)):
        path = write_config(TINY_PRETRAIN, name)
        build_trainer(load_config(path, [f"Optimizer.accum_iter={pieces}"])).train()
    one, four = (load_file(tmp_path / n / "mae_pretrain.pdparams") for n in ("one", "four"))
    for key in one:
        np.testing.assert_allclose(one[key], four[key], atol=2e-4, err_msg=key)
    for a, b in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "four")):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_one_step_is_adamw_by_hand(write_config, layer_decay):
    """p - lr * (m / (sqrt(v) + eps) + decay * p) after one step, and no decay on 1-D parameters."""
    overrides = ["Optimizer.clip_grad=null", "Optimizer.weight_decay=0.5"]
    overrides.append(f"Optimizer.layer_decay={layer_decay}")
    trainer = build_trainer(load_config(write_config(TINY_PRETRAIN), overrides))
    trainer.schedule.step(2)  # the peak: the warm-up starts at 0
    model = trainer.model
    model.train()
    batch = next(iter(trainer.train_loader.epoch(1)))
    inputs = trainer.task.prepare(batch)
    tensors = {name: paddle.to_tensor(array) for name, array in inputs.items()}
    trainer.task.training_step(model, tensors)["loss"].backward()
    before = {n: p.numpy().copy() for n, p in model.named_parameters()}
    grads = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    trainer.optimizer.clear_grad()
    lr = trainer.optimizer.get_lr()
    assert lr == pytest.approx(1e-2 * 16 / 256)
    trainer.train_step([tensors], batch)
    for name, param in model.named_parameters():
        if param.stop_gradient:
            np.testing.assert_array_equal(param.numpy(), before[name])
            continue
        g, p = grads[name].astype(np.float64), before[name].astype(np.float64)
        decay = 0.0 if g.ndim == 1 else 0.5
        # two blocks: the patch embedding is layer 0, the blocks 1 and 2, the rest 3
        block = re.match(r"blocks\.(\d)\.", name)
        layer = int(block[1]) + 1 if block else 3
        layer = 0 if name.startswith(("patch_embed", "cls_token", "pos_embed")) else layer
        rate = lr * layer_decay ** (3 - layer)
        expected = p * (1 - rate * decay) - rate * g / (np.abs(g) + 1e-8)
        # m / sqrt(v) is the gradient's sign on the first step, ill-conditioned where it vanishes
        solid = np.abs(g) > 1e-5
        np.testing.assert_allclose(param.numpy()[solid], expected[solid], atol=1e-5, err_msg=name)


def test_the_schedule_is_stepped_every_iteration_or_every_epoch(write_config, tmp_path):
    def rates(by):
        path = write_config(TINY_PRETRAIN, by)
        warm_up = f"LRScheduler.warmup_epochs={0.5 if by == 'step' else 1}"
        overrides = [f"LRScheduler.by={by}", "Global.epochs=4", warm_up]
        trainer = build_trainer(load_config(path, overrides))
        seen = []
        step = trainer.train_step

        def watched(inputs, batch):
            seen.append(trainer.optimizer.get_lr())
            return step(inputs, batch)

        trainer.train_step = watched
        trainer.train()
        return seen

    by_step, by_epoch = rates("step"), rates("epoch")
    assert len(by_step) == len(by_epoch) == 16
    peak = 1e-2 * 16 / 256
    # half an epoch of warm-up is two of four steps, then half a cosine over the other fourteen
    expected = [0.0, peak / 2]
    expected += [peak / 2 * (1 + np.cos(np.pi * (t - 2) / 14)) for t in range(2, 16)]
    assert by_step == pytest.approx(expected)
    # an epoch at the start's 0, then half a cosine over three epochs, constant within each
    expected = [0.0] * 4
    expected += [peak / 2 * (1 + np.cos(np.pi * (t // 4 - 1) / 3)) for t in range(4, 16)]
    assert by_epoch == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_rate(write_config, tmp_path):
    path = write_config(TINY_PRETRAIN)
    trainer = build_trainer(load_config(path))
    gradients = trainer.pass_of.gradients

    def broken(pieces, step):
        values = gradients(pieces, step)
        return [{"loss": paddle.full([], float("nan"))}] if step == 5 else values

    trainer.pass_of.gradients = broken
    with pytest.raises(ValueError, match=r"the loss is nan at step 6 \(epoch 2, learning rate \d"):
        trainer.train()
    assert (tmp_path / "run/checkpoints/latest").read_text() == "epoch_0001\n"
    assert not (tmp_path / "run/mae_pretrain.pdparams").exists()


def test_finetuning_keeps_the_best_and_the_latest(write_config, tmp_path):
    path = write_config(TINY_FINETUNE)
    overrides = ["Global.epochs=5", "Global.keep_last=2"]
    trainer = build_trainer(load_config(path, overrides))
    results = iter([0.3, 0.7, 0.5, 0.7, 0.6, 0.1])  # the last one is the test's
    trainer.task.evaluate = lambda model, batches: {"top1": next(results), "loss": 1.0}
    trainer.train()
    folder = tmp_path / "run/checkpoints"
    assert (folder / "best").read_text() == "epoch_0002\n"  # a tie does not replace it
    assert (folder / "latest").read_text() == "epoch_0005\n"
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert kept == ["epoch_0002", "epoch_0004", "epoch_0005"]


def test_what_a_run_leaves(write_config, tmp_path):
    path = write_config(TINY_PRETRAIN)
    build_trainer(load_config(path, ["Global.use_visualdl=true"])).train()
    run = tmp_path / "run"
    left = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    vdl = {name for name in left if name.startswith("vdl/")}
    assert len(vdl) == 1
    checkpoints = {
        f"checkpoints/epoch_000{n}/{file}"
        for n in (1, 2)
        for file in ("model.pdparams", "optimizer.pdopt", "trainer.pdstates", "manifest.json")
    }
    assert left - vdl == checkpoints | {
        ".lock",
        "checkpoints/latest",
        "config.yaml",
        "curves.png",
        "mae_pretrain.pdparams",
        "metrics.jsonl",
        "preprocess.json",
        "reconstructions/epoch_0001.png",
        "reconstructions/epoch_0002.png",
        "result.json",
        "train.log",
    }
    line = re.compile(
        r"\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\] passl_mae INFO: \[Train\]\[Epoch 2/2\]\[Iter 4/4\] "
        r"lr: \d\.\d{3}e-\d\d, loss: \d\.\d{4}, reader_cost: \d+\.\d{4}s, batch_cost: \d+\.\d{4}s, "
        r"ips: \d+\.\d images/s \(all ranks\), eta: 0:00:00"
    )
    assert line.search((run / "train.log").read_text())
    rows = metrics_of(run)
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["step"] == 8
    again = load_config(run / "config.yaml")
    assert again.Model.embed_dim == 24 and again.Data.batch_size == 16


def test_visualdl_gets_scalars_pictures_and_settings(write_config, tmp_path):
    from visualdl import LogReader

    path = write_config(TINY_FINETUNE, "ft")
    build_trainer(load_config(path, ["Global.use_visualdl=true"])).train()
    path = write_config(TINY_PRETRAIN, "pt")
    build_trainer(load_config(path, ["Global.use_visualdl=true"])).train()

    def read(name):
        (file,) = (tmp_path / name / "vdl").iterdir()
        reader = LogReader(file_path=str(file))
        return reader, {tag.rsplit("/", 1)[-1].replace("%", "/") for tag in reader.tags()}

    reader, tags = read("pt")
    assert {"Train/loss", "Train/lr", "Train/ips", "Eval/loss", "Eval/reconstructions"} <= tags
    assert "Test/loss" in tags
    assert "hparam" in tags
    losses = [(d.id, d.value) for d in reader.get_data("scalar", "Eval/loss")]
    rows = metrics_of(tmp_path / "pt")
    assert losses == [(row["step"], pytest.approx(row["eval_loss"])) for row in rows]
    reader, tags = read("ft")
    assert {"Eval/top1", "Eval/top5", "Train/top1", "Test/top1"} <= tags


def test_training_goes_on_without_visualdl_with_one_warning(write_config, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "visualdl", None)  # importing it now fails
    path = write_config(TINY_PRETRAIN)
    build_trainer(load_config(path, ["Global.use_visualdl=true", "Global.epochs=1"])).train()
    shown = capsys.readouterr().out
    assert shown.count("VisualDL cannot be used") == 1 and "finished after 4 steps" in shown


def test_mixed_precision_on_the_cpu_says_that_it_does_nothing(write_config, capsys):
    path = write_config(TINY_PRETRAIN)
    build_trainer(load_config(path, ["AMP.level=O1", "Global.epochs=1"])).train()
    assert "AMP.level O1 with bfloat16 has no effect on cpu" in capsys.readouterr().out


def test_optimizer_state_finds_its_parameters_in_a_model_built_later(write_config):
    """Paddle's own names count up in a process; the state goes by the model's names."""
    first = build_trainer(load_config(write_config(TINY_PRETRAIN, "a")))
    batches = first.pass_of.inputs(first.train_loader.epoch(1))
    batch, inputs = next(batches)
    first.train_step(inputs, batch)
    state = optimizer_state(first.optimizer.state_dict(), first.model)
    second = build_trainer(load_config(write_config(TINY_PRETRAIN, "b")))
    load_optimizer_state(second.optimizer, second.model, state)
    second.model.set_state_dict(first.model.state_dict())
    second.schedule.step(1)
    second.step = 1
    batch, inputs = next(batches)
    for trainer in (first, second):
        trainer.train_step(inputs, batch)
    assert_same_arrays(
        {n: p.numpy() for n, p in first.model.named_parameters()},
        {n: p.numpy() for n, p in second.model.named_parameters()},
    )
    with pytest.raises(ValueError, match="the optimizer state is of another model: it holds nowhe"):
        load_optimizer_state(second.optimizer, second.model, {"nowhere/moment1_0": np.zeros(1)})


@pytest.fixture(autouse=True)
def close_logs():
    yield
    logger = logging.getLogger("passl_mae")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
