"""From the folder of a finished run to its network, ready to be used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, Optional

from paddle import nn

from passl_mae import runtime
from passl_mae.config import load_config
from passl_mae.data.datasets import DATASETS
from passl_mae.data.preprocess import Preprocessing, from_json
from passl_mae.engine.build import build_model, load_pretrained
from passl_mae.engine.build_data import preprocessing
from passl_mae.engine.build_images import IMAGE_SETS, find_images
from passl_mae.engine.checkpoint import RunFolder
from passl_mae.export import Classifier, Encoder, Reconstructor
from passl_mae.fast import choose
from passl_mae.files import read_json
from passl_mae.models.mae import MAE_Pretrain, num_kept_patches
from passl_mae.models.moco import MoCo
from passl_mae.models.vit import MAE_FineTune
from passl_mae.models.weights import extract_encoder, load_into
from passl_mae.schema import RunConfig


class Run(NamedTuple):
    """A trained network and what it has to be told.

    task: "classify" or how it was pretrained. mask_ratio: that it was trained with, of an
        autoencoder; else None.
    """

    folder: str
    name: str
    task: str
    model: nn.Layer
    preprocessing: Preprocessing
    mask_ratio: Optional[float]
    mlp_ratio: float
    cpu_ops: str

    @property
    def num_patches(self) -> int:
        return self.model.patch_embed.num_patches

    @property
    def norm_pix_loss(self) -> bool:
        return self.model.norm_pix_loss

    def part(
        self, kind: str, mask_ratio: float | None = None
    ) -> Classifier | Encoder | Reconstructor:
        """The network as one of `export.KINDS`, in evaluation mode.

        Args:
            mask_ratio: of a reconstruction; None takes that of the training.

        Raises:
            ValueError: the run's network is not of this kind, or an impossible mask ratio.
        """
        is_mae = isinstance(self.model, MAE_Pretrain)
        if kind == "classifier":
            if self.task != "classify":
                raise ValueError(
                    f"{self.folder} holds a pretraining model ({self.name}), which knows no "
                    "classes: finetune it first (tools/extract_encoder.py, "
                    "tools/train_finetune.py), or ask for its features or reconstructions"
                )
            part = Classifier(self.model)
        elif kind == "encoder":
            query = self.model.encoder_q if isinstance(self.model, MoCo) else self.model
            part = Encoder(self._encoder() if is_mae else query)
        else:
            if not is_mae:
                raise ValueError(
                    f"{self.folder} holds {self.name}, which does not reconstruct: give the "
                    "folder of an MAE pretraining run"
                )
            ratio = self.mask_ratio if mask_ratio is None else mask_ratio
            num_kept_patches(self.num_patches, ratio)
            part = Reconstructor(self.model, ratio)
        part.eval()
        return part

    def prepare_for(self, kind: str) -> Preprocessing:
        """How images are prepared for a part; only a classifier has names of classes."""
        if kind == "classifier":
            return self.preprocessing
        return self.preprocessing._replace(class_names=[])

    def _encoder(self) -> MAE_FineTune:
        """What finetuning would begin with, so that features are those of the other tools."""
        mae = self.model
        encoder = MAE_FineTune(
            img_size=mae.img_size,
            patch_size=mae.patch_embed.patch_size,
            in_chans=mae.in_chans,
            num_classes=0,
            embed_dim=mae.cls_token.shape[-1],
            depth=len(mae.blocks),
            num_heads=mae.blocks[0].attn.num_heads,
            mlp_ratio=self.mlp_ratio,
        )
        state, _ = extract_encoder(mae.state_dict())
        load_into(encoder, state, allow_missing=["fc_norm"])
        choose(encoder, self.cpu_ops)
        return encoder


def load_run(
    folder: str | Path,
    weights: str | Path | None = None,
    device: str = "auto",
    cpu_ops: str = "auto",
) -> Run:
    """The network of a run's folder, wherever the folder was moved; no images are needed.

    Args:
        weights: a file to take instead of the finished weights, e.g. of a checkpoint.
        device: auto, cpu, gpu or gpu:N.
        cpu_ops: the C++ operators: auto (if built), on or off.

    Raises:
        ValueError: not a run's folder, no finished weights in it, weights of another model; a run
            of an older version whose images are not at hand.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        there = "holds no run (config.yaml is not there)" if run.root.is_dir() else "no such folder"
        raise ValueError(f"{folder}: {there}; give the Global.output_dir of a finished run")
    config = load_config(run.config)
    weights = weights or _finished_weights(run, config)
    return _run(str(folder), config, weights, run.preprocess, device, cpu_ops)


def load_weights_file(
    weights: str | Path, config_file: str | Path, device: str = "auto", cpu_ops: str = "auto"
) -> Run:
    """The network of a file of weights, of which the config says the rest; no images are needed.

    Args:
        weights: the file, of any kind that can be loaded.
        config_file: the YAML that it was trained with.
        device, cpu_ops: as for `load_run`.

    Raises:
        ValueError: weights of another model, a mistake in the config, a classifier of one's own
            images where these are not at hand.
    """
    return _run(str(weights), load_config(config_file), weights, None, device, cpu_ops)


def _run(
    source: str,
    config: RunConfig,
    weights: str | Path,
    preprocess: Path | None,
    device: str,
    cpu_ops: str,
) -> Run:
    runtime.select_device(device)
    model = build_model(config)
    load_pretrained(model, str(weights))
    model.eval()
    choose(model, cpu_ops)
    if preprocess is not None and preprocess.exists():
        said_by = str(preprocess)
        prepare = from_json(read_json(preprocess), said_by)
    else:
        said_by = f"{source}: the data set of its config, {config.Data.name},"
        prepare = _preprocessing_of_old(config, model, source)
    _check(config, model, prepare, said_by)
    m = config.Model
    ratio, mlp_ratio = getattr(m, "mask_ratio", None), getattr(m, "mlp_ratio", None) or 4.0
    return Run(source, m.name, config.task, model, prepare, ratio, mlp_ratio, cpu_ops)


def _finished_weights(run: RunFolder, config: RunConfig) -> Path:
    ending = "finetune" if config.task == "classify" else "pretrain"
    found = sorted(run.root.glob(f"*_{ending}.pdparams"))
    if not found:
        way = ""
        if run.checkpoints.is_dir():
            way = f", or name the weights of a checkpoint: {run.checkpoints}/.../model.pdparams"
        raise ValueError(
            f"{run.root} has no finished weights (mae_{ending}.pdparams): the run is not over; go "
            f"on with it (Global.checkpoints=latest){way}"
        )
    return found[0]


def _preprocessing_of_old(config: RunConfig, model: nn.Layer, folder: str) -> Preprocessing:
    """Without a `preprocess.json`: of the data set, whose folders name the classes."""
    data_set = DATASETS[config.Data.name]
    known = SimpleNamespace(mean=data_set.MEAN, std=data_set.STD, class_names=[])
    if config.task == "classify":
        try:
            own_images = config.Data.name in IMAGE_SETS
            found = find_images(config).train.class_names if own_images else data_set.CLASS_NAMES
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{folder}: no preprocess.json beside it (an older run, or a file alone) "
                f"names the classes, and the images cannot be asked: {error}"
            ) from None
        known.class_names = list(found)
    return preprocessing(config, model, known)


def _check(config: RunConfig, model: nn.Layer, prepare: Preprocessing, source: str) -> None:
    """What the file beside the weights says, or the data set, is of this model."""
    reading, names = prepare.reading, prepare.class_names
    wanted = (tuple(model.img_size), model.in_chans)
    if (reading.size, reading.channels) != wanted:
        raise ValueError(f"{source} is of another model: this one takes images {wanted}")
    if config.task == "classify" and len(names) != config.Model.num_classes:
        raise ValueError(
            f"{source} names {len(names)} classes, and the model has {config.Model.num_classes}"
        )
