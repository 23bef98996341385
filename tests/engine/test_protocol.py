"""The protocol: what is learned from, what is watched and chosen by, what is seen once."""

import json

import numpy as np
import pytest

from passl_mae.config import load_config
from passl_mae.engine.build import build_model, build_trainer, evaluate
from passl_mae.engine.build_data import build_splits
from passl_mae.engine.build_probes import predict
from passl_mae.models.weights import load_file
from tests.engine.test_trainer import metrics_of
from tests.tiny_runs import TINY_FINETUNE, TINY_PRETRAIN


def built(write_config, *overrides, settings=TINY_FINETUNE):
    return build_trainer(load_config(write_config(settings), overrides))


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_test_images_are_evaluated_once_and_never_chosen_by(write_config, tmp_path):
    trainer = built(write_config, "Global.epochs=3")
    seen = []
    evaluated = trainer.task.evaluate

    def watching(model, loader):
        seen.append(loader)
        return evaluated(model, loader)

    trainer.task.evaluate = watching
    trainer.train()
    assert seen == [trainer.eval_loader] * 3 + [trainer.test_loader]
    rows = metrics_of(tmp_path / "run")
    assert all("eval_top1" in row and not any("test" in key for key in row) for row in rows)
    tested = result_of(tmp_path / "run")
    assert tested["weights"] == "last" and tested["epoch"] == 3 and tested["averaged"] is False


def test_without_held_out_images_nothing_is_watched(write_config, tmp_path):
    trainer = built(write_config, "Data.val_fraction=0")
    trainer.train()
    assert all(not any("eval" in key for key in row) for row in metrics_of(tmp_path / "run"))
    assert not (tmp_path / "run/checkpoints/best").exists()
    assert {"test_loss", "test_top1", "test_top5"} <= result_of(tmp_path / "run").keys()
    assert "80 to learn from, none held out" in (tmp_path / "run/train.log").read_text()


def test_training_and_held_out_images_have_none_in_common(write_config):
    config = load_config(write_config(TINY_FINETUNE), ["Data.val_fraction=0.3"])
    splits = build_splits(config, build_model(config))
    train, held_out = (set(part.indices) for part in (splits.train, splits.held_out))
    assert len(held_out) == 24 and not train & held_out and len(train | held_out) == 80
    # few labels are taken from what is left, whatever the seed; the held-out images stay
    for seed in (0, 1):
        few = load_config(
            write_config(TINY_FINETUNE),
            ["Data.val_fraction=0.3", "Data.train.label_fraction=0.5", f"Global.seed={seed}"],
        )
        fewer = build_splits(few, build_model(few))
        np.testing.assert_array_equal(fewer.held_out.indices, splits.held_out.indices)
        of_the_set = fewer.train.dataset.indices[fewer.train.indices]
        assert set(of_the_set) < train


def test_the_best_weights_are_those_of_the_best_held_out_epoch(write_config, tmp_path):
    trainer = built(write_config, "Global.epochs=4", "Global.finish_with=best")
    values = iter([0.1, 0.5, 0.4, 0.2])
    evaluated = trainer.task.evaluate

    def invented(model, loader):
        result = evaluated(model, loader)
        return {**result, "top1": next(values)} if loader is trainer.eval_loader else result

    trainer.task.evaluate = invented
    trainer.train()
    finished = load_file(tmp_path / "run/mae_finetune.pdparams")
    best = load_file(tmp_path / "run/checkpoints/epoch_0002/model.pdparams")
    last = load_file(tmp_path / "run/checkpoints/epoch_0004/model.pdparams")
    assert all((finished[name] == best[name]).all() for name in best)
    assert any((finished[name] != last[name]).any() for name in last)
    tested = result_of(tmp_path / "run")
    assert tested["weights"] == "best" and tested["epoch"] == 2
    weights = f"Global.pretrained_model={tmp_path / 'run/mae_finetune.pdparams'}"
    config = load_config(tmp_path / "run/config.yaml", [weights])
    count, again = evaluate(config)
    assert count == tested["test_images"] == 24
    for name, value in again.items():
        assert value == pytest.approx(tested[f"test_{name}"])


@pytest.mark.parametrize("settings", [TINY_FINETUNE, TINY_PRETRAIN], ids=["classify", "pretrain"])
def test_averaged_weights_are_the_tested_ones(write_config, tmp_path, settings):
    built(write_config, "Optimizer.ema_decay=0.9", settings=settings).train()
    name = {"mae_vit_t_p4": "mae_finetune"}.get(settings["Model"]["name"], "mae_pretrain")
    weights = f"Global.pretrained_model={tmp_path / 'run' / name}.pdparams"
    _, again = evaluate(load_config(tmp_path / "run/config.yaml", [weights]))
    tested = result_of(tmp_path / "run")
    assert tested["averaged"] is True
    assert again["loss"] == pytest.approx(tested["test_loss"], rel=1e-6)


def test_a_run_killed_while_it_was_tested_is_tested_again(write_config, tmp_path):
    """Killed after its last checkpoint: the same command finishes it, with nothing twice."""
    from visualdl import LogReader

    on = ["Global.use_visualdl=true", "Global.finish_with=best"]
    trainer = built(write_config, *on)
    write = trainer.run.write_result

    def killed(*args):
        write(*args)
        raise KeyboardInterrupt

    trainer.run.write_result = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    first = result_of(tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    built(write_config, *on, "Global.checkpoints=latest").train()
    assert result_of(tmp_path / "run") == first
    (file,) = (tmp_path / "run/vdl").iterdir()
    assert len(LogReader(file_path=str(file)).get_data("scalar", "Test/top1")) == 1


def test_a_pointer_to_the_best_that_a_crash_left_behind_is_mended(write_config, tmp_path):
    trainer = built(write_config, "Global.epochs=1")
    trainer.train()
    pointer = tmp_path / "run/checkpoints/best"
    assert pointer.read_text() == "epoch_0001\n"
    pointer.unlink()
    built(write_config, "Global.epochs=1", "Global.checkpoints=latest")
    assert pointer.read_text() == "epoch_0001\n"


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (["Global.finish_with=best", "Data.val_fraction=0"], TINY_FINETUNE, "needs held-out"),
        (["Global.finish_with=best"], TINY_PRETRAIN, "is for classifiers"),
        (["Data.val_fraction=1"], TINY_FINETUNE, "Data.val_fraction"),
        (["Data.val_fraction=0.001"], TINY_FINETUNE, "Data.val_fraction: a share of 0.001"),
        (
            ["Data.train.labels_per_class=2", "Data.train.label_fraction=0.5"],
            TINY_FINETUNE,
            "labels_per_class or label_fraction, not both",
        ),
        (["Data.train.label_fraction=0"], TINY_FINETUNE, "Data.train.label_fraction"),
    ],
)
def test_mistakes_are_refused(write_config, overrides, settings, message):
    with pytest.raises(ValueError, match=message):
        built(write_config, *overrides, settings=settings)


def test_the_held_out_split_is_not_there_without_a_share(write_config, tmp_path):
    built(write_config, "Data.val_fraction=0", "Global.epochs=1").train()
    config = load_config(
        tmp_path / "run/config.yaml",
        [f"Global.pretrained_model={tmp_path / 'run/mae_finetune.pdparams'}"],
    )
    with pytest.raises(ValueError, match="no images are held out"):
        evaluate(config, "val")
    assert len(predict(config, "train").labels) == 80
