"""From a config to the objects of a run. With `tools/`, the only place that knows the config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import yaml
from matplotlib.figure import Figure
from paddle import nn

from passl_mae import distributed, logger, runtime
from passl_mae.config import dump_config, flatten
from passl_mae.data.datasets import DATASETS
from passl_mae.data.image_files import read_images
from passl_mae.data.loader import EvalLoader
from passl_mae.data.mixing import Mixing
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import Normalize
from passl_mae.engine.build_contrast import CONTRAST_NO_DECAY, OF_THE_TASK, build_contrast_task
from passl_mae.engine.build_data import (
    Loaders,
    build_loaders,
    build_splits,
    check_choice,
    preprocessing,
    statistics,
)
from passl_mae.engine.build_images import describe_images, write_skipped
from passl_mae.engine.checkpoint import Checkpoints, RunFolder
from passl_mae.engine.precision import Precision
from passl_mae.engine.tasks import ClassifyTask, PretrainTask, Task, draw_reconstructions
from passl_mae.engine.trainer import Trainer
from passl_mae.fast import choose
from passl_mae.files import replacing, write_json
from passl_mae.models import MODELS
from passl_mae.models.efficientnet import EfficientNet
from passl_mae.models.efficientnet_weights import weights_for
from passl_mae.models.weights import layout_of, load_into, load_weights
from passl_mae.optim.freeze import freeze
from passl_mae.optim.optimizers import make_optimizer
from passl_mae.optim.param_groups import FINETUNE_NO_DECAY
from passl_mae.optim.schedules import WarmupCosineLR
from passl_mae.schema import OptimizerConfig, RunConfig

NEW_IN_CLASSIFIER = (
    *("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"),
    *("head.0._mean", "head.0._variance", "head.1.weight", "head.1.bias"),  # of a linear probe
)
DRAWN_IMAGES = 6
# What runs are compared by, in VisualDL: metrics of the training, and of evaluations.
COMPARED = {
    "pretrain": (["loss"], ["loss"]),
    "classify": (["loss", "top1"], ["loss", "top1"]),
    "contrast": (["loss"], ["knn_top1"]),
}


def build_trainer(config: RunConfig) -> Trainer:
    """Everything a run needs, resumed where the config says so.

    Nothing is written before all parts are built, so that a mistake leaves no folder behind.
    """
    g = config.Global
    runtime.select_device(g.device)
    distributed.init(g.device)
    run = RunFolder(g.output_dir)
    checkpoint = find_checkpoint(config, run)
    runtime.seed_everything(g.seed)
    model = build_model(config)
    operators = choose(model, g.cpu_ops, static=g.to_static)
    loaded = ""
    if g.pretrained_model and checkpoint is None:
        loaded = load_pretrained(model, g.pretrained_model, NEW_IN_CLASSIFIER)
    if config.task == "classify":
        freeze(model, config.Model.freeze, getattr(config.Model, "freeze_bn", None))
    loaders = build_loaders(config, model, build_splits(config, model))
    schedule = build_schedule(config, loaders.train.steps_per_epoch)
    optimizer = build_optimizer(config.Optimizer, config.task, model, schedule)
    task = build_task(config, model, loaders.held_out or loaders.test, loaders.plain)
    check_choice(g.finish_with, loaders, task.best_metric)
    if g.to_static:
        model = paddle.jit.to_static(model)
    open_run(config, run, checkpoint)
    try:
        logger.get_logger().log(*operators)
        sources = [loader.dataset for loader in loaders if loader is not None]
        for line in (loaded, *describe_images(*sources), describe_splits(loaders, g.test)):
            if line:
                logger.get_logger().info(line)
        write_skipped(run.root, *sources)
        vdl = logger.VisualDLWriter(run.vdl, enabled=g.use_visualdl)
        trainer = Trainer(
            task=task,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            schedule_by=config.LRScheduler.by,
            precision=Precision(config.AMP.level, config.AMP.dtype, config.AMP.init_loss_scaling),
            train_loader=loaders.train,
            eval_loader=loaders.held_out,
            test_loader=loaders.test if g.test else None,
            run=run,
            vdl=vdl,
            seed=g.seed,
            epochs=g.epochs,
            accum_iter=config.Optimizer.accum_iter,
            sharding=config.Optimizer.sharding,
            check_loss=when_to_check_loss(g.check_loss, g.max_skipped_steps),
            ema_decay=config.Optimizer.ema_decay,
            print_batch_step=g.print_batch_step,
            eval_interval=g.eval_interval,
            save_interval=g.save_interval,
            save_steps=g.save_steps,
            keep_last=g.keep_last,
            keep_every=g.keep_every,
            max_skipped_steps=g.max_skipped_steps,
            finish_with=g.finish_with,
        )
        if checkpoint is None:
            vdl.open()
        else:
            trainer.resume(checkpoint)
        compared = [
            f"{split}/{name}"
            for split in ["Train"] + ["Eval"] * bool(loaders.held_out) + ["Test"] * g.test
            for name in COMPARED[config.task][split != "Train"]
        ]
        vdl.hparams(flatten(config.model_dump()), compared)
        steps = distributed.gather_over_ranks(np.array([trainer.step]))
        if (steps != steps[0]).any():
            raise ValueError(
                "the ranks found different checkpoints: Global.output_dir must lie on a disk that "
                "all machines share"
            )
        if distributed.is_main():
            prepare = preprocessing(config, model, loaders.plain.dataset)
            write_json(run.preprocess, prepare.to_json())
            with replacing(run.config) as beside:
                beside.write_text(dump_config(config), encoding="utf-8")
    except BaseException:
        run.unlock()
        raise
    return trainer


def describe_splits(loaders: Loaders, test: bool) -> str:
    """A line of the log: how many images are learned from, watched, and kept for the end."""
    watched = "none held out (Data.val_fraction)"
    if loaders.held_out:
        watched = f"{len(loaders.held_out.dataset)} held out"
    tested = "are evaluated once, at the end" if test else "are not looked at (Global.test)"
    if loaders.held_out and loaders.held_out.dataset is loaders.test.dataset:
        tested = f"(there is none: the held-out ones) {tested}"
    return (
        f"images: {len(loaders.train.dataset)} to learn from, {watched}; "
        f"{len(loaders.test.dataset)} of the test split {tested}"
    )


def find_checkpoint(config: RunConfig, run: RunFolder) -> Path | None:
    """The checkpoint to go on from: `latest` of the folder (None where there is none) or a path.

    Raises:
        ValueError: the folder holds a run that was not asked for, or there is no such checkpoint.
    """
    wish = config.Global.checkpoints
    if wish == "latest":
        return Checkpoints(run.checkpoints, config.Global.keep_last).latest()
    checkpoint = None if wish is None else Path(wish)
    if checkpoint is not None and not checkpoint.is_dir():
        raise ValueError(f"Global.checkpoints: there is no checkpoint folder {wish}")
    if distributed.is_main():
        if run.owns(checkpoint):
            Checkpoints(run.checkpoints, config.Global.keep_last).refuse_to_go_back(checkpoint)
        else:
            run.refuse_another_run()
    return checkpoint


def open_run(config: RunConfig, run: RunFolder, checkpoint: Path | None) -> None:
    """Makes and locks the folder and begins its log; rank 0 only."""
    if not distributed.is_main():
        logger.setup()
        return
    run.lock()
    log = logger.setup(run.log)
    log.info(f"output_dir {run.root}, {_machine()}")
    log.info("the resolved config:\n" + dump_config(config).rstrip())
    if run.owns(checkpoint) and run.config.exists():
        for line in _changes(run.config, config):
            log.warning(line)
    if checkpoint is None and config.Global.checkpoints == "latest":
        log.info(f"no checkpoint in {run.checkpoints} yet: starting from the beginning")
        run.metrics.unlink(missing_ok=True)


def _machine() -> str:
    ranks = distributed.world_size()
    return (
        f"PaddlePaddle {paddle.__version__} on {paddle.device.get_device()}, "
        f"{ranks} rank{'s' if ranks > 1 else ''}"
    )


def _changes(old_file: Path, config: RunConfig) -> list[str]:
    """How a resumed run's settings differ from those it began with."""
    old = flatten(yaml.safe_load(old_file.read_text(encoding="utf-8")))
    new = flatten(config.model_dump())
    return [
        f"resuming with {key} = {new.get(key)!r}, which was {old.get(key)!r}"
        for key in sorted({*old, *new} - {"Global.checkpoints"})
        if old.get(key) != new.get(key)
    ]


def build_model(config: RunConfig) -> nn.Layer:
    """The model by its name; settings that are None keep the named model's own."""
    of_the_task = {"name", "mask_ratio", "freeze", "freeze_bn", *OF_THE_TASK}
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.Model.model_dump(exclude_none=True).items()
        if key not in of_the_task
    }
    if "drop_path" in arguments:
        arguments["drop_path_rate"] = arguments.pop("drop_path")
    return MODELS[config.Model.name](**arguments)


def load_pretrained(model: nn.Layer, path: str, may_be_new: tuple[str, ...] = ()) -> str:
    """Weights from a file into a model; returns a line that says what was loaded.

    Raises:
        ValueError: the file does not fit; for a pretraining file, what to do first.
    """
    state = load_weights(path)
    pretraining = {"decoder_embed": "decoder", "encoder_q": "encoder_q."}
    if any(
        not hasattr(model, layer) and any(key.startswith(prefix) for key in state)
        for layer, prefix in pretraining.items()
    ):
        raise ValueError(
            f"{path} holds a pretraining model: take its encoder first, with python "
            f"tools/extract_encoder.py --checkpoint {path} --output encoder.pdparams"
        )
    own, note = set(model.state_dict()), ""
    try:
        if isinstance(model, EfficientNet):
            converted = layout_of(path) == "torch"
            state, note = weights_for(model, state, bool(may_be_new), converted)
        new = [key for key in may_be_new if key in own and key not in state]
        load_into(model, state, allow_missing=new)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "head.weight" in new:  # a head that starts near zero, as the reference finetunes
        nn.initializer.Normal(std=2e-5)(model.head.weight)
    fresh = f"; newly initialised: {', '.join(new)}" if new else ""
    return f"loaded {len(state)} tensors from {path}{note and f' ({note})'}{fresh}"


def build_task(
    config: RunConfig, model: nn.Layer, eval_loader: EvalLoader, plain: EvalLoader
) -> Task:
    """The task of the config's model.

    Args:
        eval_loader: a pretraining draws the first of these images.
        plain: the training images as they are, which a contrastive one finds neighbours among.
    """
    if config.task == "contrast":
        return build_contrast_task(config, model, plain)
    if config.task == "classify":
        t = config.Data.train
        return ClassifyTask(
            Mixing(
                num_classes=config.Model.num_classes,
                mixup=t.mixup,
                cutmix=t.cutmix,
                prob=t.mixup_prob,
                switch_prob=t.mixup_switch_prob,
                smoothing=t.smoothing,
            )
        )
    data = eval_loader.dataset
    mean, std = statistics(config.Data, data)
    drawn, _ = data.fetch(np.arange(min(DRAWN_IMAGES, len(data))))
    examples = eval_loader.transform(drawn, BatchRandom((config.Global.seed,), len(drawn)))
    num_patches = model.patch_embed.num_patches
    return PretrainTask(config.Model.mask_ratio, num_patches, examples, mean, std)


def build_optimizer(
    o: OptimizerConfig, task: str, model: nn.Layer, schedule: WarmupCosineLR
) -> paddle.optimizer.Optimizer:
    """The optimizer of the config, as the reference sets it up for the task."""
    default_beta2 = {"pretrain": 0.95, "classify": 0.999, "contrast": 0.999}[task]
    exempt = {"classify": FINETUNE_NO_DECAY, "contrast": CONTRAST_NO_DECAY}
    return make_optimizer(
        o.name,
        model,
        schedule,
        weight_decay=o.weight_decay,
        exempt=exempt.get(task, ()),
        layer_decay=o.layer_decay,
        clip_grad=o.clip_grad,
        beta1=o.beta1,
        beta2=default_beta2 if o.beta2 is None else o.beta2,
        momentum=o.momentum,
    )


def when_to_check_loss(wish: str, max_skipped_steps: int) -> str:
    """ "step" or "line": see `Trainer`. A GPU is not made to wait at every step without need."""
    if wish != "auto":
        return wish
    return "line" if runtime.on_gpu() and not max_skipped_steps else "step"


def build_schedule(config: RunConfig, steps_per_epoch: int) -> WarmupCosineLR:
    """The schedule in steps or epochs; `blr` becomes a rate by batch_size / 256 (MAE A.1)."""
    o, s = config.Optimizer, config.LRScheduler
    rate = o.learning_rate if o.blr is None else o.blr * config.Data.batch_size / 256
    unit = steps_per_epoch if s.by == "step" else 1
    warmup = round(s.warmup_epochs * unit)
    return WarmupCosineLR(
        rate,
        warmup_start_lr=s.warmup_start_lr,
        end_lr=s.end_lr,
        warmup_epochs=warmup,
        hold_epochs=round((s.warmup_epochs + s.hold_epochs) * unit) - warmup,
        total_epochs=config.Global.epochs * unit,
    )


def evaluate(config: RunConfig, split: str = "test") -> tuple[int, dict[str, float]]:
    """(number of images, metrics) of `Global.pretrained_model` on a split of the data."""
    task, model, loader = build_evaluation(config, split)
    with paddle.no_grad():
        return len(loader.dataset), task.evaluate(model, loader)


def build_evaluation(config: RunConfig, split: str) -> tuple[Task, nn.Layer, EvalLoader]:
    """The weights of `Global.pretrained_model`, in evaluation mode, and a split's images.

    Raises:
        ValueError: no weights are named, they do not fit, or the split has no images.
    """
    if config.Global.pretrained_model is None:
        raise ValueError("say which weights: -o Global.pretrained_model=FILE")
    runtime.select_device(config.Global.device)
    distributed.init(config.Global.device)
    model = build_model(config)
    choose(model, config.Global.cpu_ops)
    load_pretrained(model, config.Global.pretrained_model)
    model.eval()
    loaders = build_loaders(config, model, build_splits(config, model))
    loader = loader_of(split, loaders)
    return build_task(config, model, loader, loaders.plain), model, loader


def loader_of(split: str, loaders: Loaders) -> EvalLoader:
    """ "test", "val" (the images held out of training) or "train", without augmentation.

    Raises:
        ValueError: no images are held out.
    """
    if split == "val" and loaders.held_out is None:
        raise ValueError("no images are held out: set Data.val_fraction as the training had it")
    return {"test": loaders.test, "val": loaders.held_out, "train": loaders.plain}[split]


def draw_checkpoint(
    config: RunConfig,
    checkpoint: str,
    mask_ratios: list[float],
    files: list[str] | None,
    num_images: int,
    seed: int,
) -> Figure:
    """The reconstruction figure of a pretraining checkpoint, on files or evaluation images."""
    if config.task != "pretrain":
        raise ValueError(f"{config.Model.name} reconstructs nothing: give a config of MAE's")
    runtime.select_device(config.Global.device)
    model = build_model(config)
    choose(model, config.Global.cpu_ops)
    load_pretrained(model, checkpoint)
    dataset = DATASETS[config.Data.name]
    if files:
        size, channels = model.patch_embed.img_size, model.patch_embed.in_chans
        images = read_images(files, size, channels, config.Data.max_pixels)
        mean, std = config.Data.mean or dataset.MEAN, config.Data.std or dataset.STD
    else:
        eval_set = build_splits(config, model).test
        images, _ = eval_set.fetch(np.arange(min(num_images, len(eval_set))))
        mean, std = statistics(config.Data, eval_set)
    images = Normalize(mean, std)(images, BatchRandom((seed,), len(images)))
    return draw_reconstructions(model, images, mean, std, mask_ratios, seed)
