"""Configs: YAML files with `_base_`, `-o` overrides, a schema, and the dump of what results.

defaults (the schema below) < `_base_` files < the file < `-o Key.sub=value`, then validated. An
error names the file and line (or the override), the key, and the nearest valid key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

BASE_KEY = "_base_"


def _number_from_text(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no dot) as a string; where a number is wanted it is one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _off_from_false(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


Number = Annotated[float, BeforeValidator(_number_from_text)]
NonNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Size = Union[Count, Annotated[list[Count], Field(min_length=2, max_length=2)]]
Channels = Annotated[list[Number], Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class GlobalConfig(Section):
    output_dir: str = Field("output/run", description="folder of the run; one run per folder")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of weights, masks, order, crops")
    device: str = Field("auto", description="auto, cpu, gpu or gpu:N")
    epochs: Count = Field(100, description="passes over the training images")
    checkpoints: Optional[str] = Field(
        None, description="resume from: `latest` of output_dir, or a checkpoint folder"
    )
    pretrained_model: Optional[str] = Field(None, description="weights to start from, a file")
    save_interval: Count = Field(1, description="epochs between checkpoints")
    save_steps: Optional[Count] = Field(None, description="steps between checkpoints, too")
    keep_last: Count = Field(3, description="checkpoints to keep, besides the best one")
    keep_every: Optional[Count] = Field(None, description="keep those of every N-th epoch, too")
    eval_interval: Count = Field(1, description="epochs between evaluations and pictures")
    print_batch_step: Count = Field(10, description="steps between log lines")
    use_visualdl: bool = Field(True, description="write scalars and pictures for VisualDL")


class VitConfig(Section):
    """What pretraining model and classifier share; None takes the value of the named model."""

    img_size: Optional[Size] = Field(None, description="pixels, or [height, width]")
    patch_size: Optional[Size] = Field(None, description="pixels, or [height, width]")
    in_chans: Count = Field(3, description="image channels")
    embed_dim: Optional[Count] = Field(None, description="encoder width")
    depth: Optional[Count] = Field(None, description="encoder blocks")
    num_heads: Optional[Count] = Field(None, description="encoder attention heads")
    mlp_ratio: Optional[NonNegative] = Field(None, description="hidden width of an MLP / width")


class PretrainModelConfig(VitConfig):
    task: ClassVar[str] = "pretrain"
    name: Literal[
        "MAE_Pretrain",
        "mae_vit_t_p4_dec128d2b",
        "mae_vit_s_p4_dec256d4b",
        "mae_vit_b_p16_dec512d8b",
        "mae_vit_l_p16_dec512d8b",
        "mae_vit_h_p14_dec512d8b",
    ]
    decoder_embed_dim: Optional[Count] = Field(None, description="decoder width")
    decoder_depth: Optional[Count] = Field(None, description="decoder blocks")
    decoder_num_heads: Optional[Count] = Field(None, description="decoder attention heads")
    mask_ratio: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.75, description="share of the patches that is removed"
    )
    norm_pix_loss: bool = Field(False, description="normalise each target patch by itself")


class ClassifierModelConfig(VitConfig):
    task: ClassVar[str] = "classify"
    name: Literal[
        "MAE_FineTune",
        "mae_vit_t_p4",
        "mae_vit_s_p4",
        "mae_vit_b_p16",
        "mae_vit_l_p16",
        "mae_vit_h_p14",
    ]
    num_classes: Count = Field(10, description="classes of the head")
    drop_rate: Probability = Field(0.0, description="dropout")
    attn_drop_rate: Probability = Field(0.0, description="dropout on attention weights")
    drop_path: Probability = Field(0.0, description="stochastic depth of the last block")
    global_pool: bool = Field(True, description="mean of the patch tokens, or the class token")
    freeze: Annotated[str, Field(pattern=r"^(none|encoder|all-but-last-\d+)$")] = Field(
        "none", description="what does not learn: none, encoder, all-but-last-K (blocks)"
    )


class TrainDataConfig(Section):
    num_images: Optional[Count] = Field(None, description="first N only (Shapes: N are made)")
    labels_per_class: Optional[Count] = Field(None, description="few labels: images per class")
    crop: Literal["none", "pad", "resized"] = Field(
        "pad", description="random crop after padding, random-resized crop, or none"
    )
    crop_padding: Annotated[int, Field(ge=0)] = Field(4, description="pixels, for crop: pad")
    crop_scale: Annotated[list[Number], Field(min_length=2, max_length=2)] = Field(
        [0.2, 1.0], description="share of the area, for crop: resized"
    )
    crop_ratio: Annotated[list[Number], Field(min_length=2, max_length=2)] = Field(
        [0.75, 4 / 3], description="width / height, for crop: resized"
    )
    hflip: Probability = Field(0.5, description="probability of a horizontal flip")
    smoothing: Probability = Field(0.0, description="label smoothing, of a classifier's targets")
    rand_augment: Optional[Annotated[Number, Field(ge=0, le=10)]] = Field(
        None, description="magnitude of RandAugment (two operations), 0 to 10"
    )
    reprob: Probability = Field(0.0, description="probability of erasing a random box")
    mixup: NonNegative = Field(0.0, description="alpha of mixup; 0 is off")
    cutmix: NonNegative = Field(0.0, description="alpha of cutmix; 0 is off")
    mixup_prob: Probability = Field(1.0, description="of mixing a batch, where it is on")
    mixup_switch_prob: Probability = Field(0.5, description="of cutmix, where both are on")


class EvalDataConfig(Section):
    num_images: Optional[Count] = Field(None, description="first N only (Shapes: N are made)")


class DataConfig(Section):
    name: Literal["Cifar10", "Shapes"]
    path: Optional[str] = Field(None, description="file or folder of the data set")
    batch_size: Count = Field(
        256, description="images per optimizer step, over all ranks and accumulated pieces"
    )
    eval_batch_size: Count = Field(500, description="images per evaluation step, over all ranks")
    mean: Optional[Channels] = Field(None, description="per channel, 0..1; the data set's own")
    std: Optional[Channels] = Field(None, description="per channel, 0..1; the data set's own")
    train: TrainDataConfig = TrainDataConfig()
    eval: EvalDataConfig = EvalDataConfig()


class OptimizerConfig(Section):
    name: Literal["AdamW"] = "AdamW"
    blr: Optional[NonNegative] = Field(
        None, description="base learning rate; the rate is blr * batch_size / 256"
    )
    learning_rate: Optional[NonNegative] = Field(None, description="plain; instead of blr")
    beta1: Probability = 0.9
    beta2: Optional[Probability] = Field(None, description="0.95 pretraining, 0.999 finetuning")
    weight_decay: NonNegative = Field(0.05, description="not on biases and norms")
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="learning-rate factor per layer from the head down; 1 is off"
    )
    clip_grad: Optional[Annotated[Number, Field(gt=0)]] = Field(
        None, description="largest global gradient norm"
    )
    ema_decay: Optional[Annotated[Number, Field(ge=0, lt=1)]] = Field(
        None, description="average the weights, and evaluate and keep the average"
    )
    accum_iter: Count = Field(1, description="pieces that a batch is computed in, to save memory")

    @model_validator(mode="after")
    def _one_rate(self) -> OptimizerConfig:
        if (self.blr is None) == (self.learning_rate is None):
            raise ValueError("set exactly one of blr (scaled by batch_size / 256) or learning_rate")
        return self


class LRSchedulerConfig(Section):
    name: Literal["WarmupCosineLR"] = "WarmupCosineLR"
    by: Literal["step", "epoch"] = Field("step", description="stepped every iteration or epoch")
    warmup_epochs: NonNegative = Field(0, description="epochs of linear warm-up")
    warmup_start_lr: NonNegative = Field(0.0, description="learning rate of the first step")
    end_lr: NonNegative = Field(0.0, description="learning rate at the end")


class AMPConfig(Section):
    level: Annotated[Literal["off", "O1", "O2"], BeforeValidator(_off_from_false)] = Field(
        "off", description="mixed precision: off, O1 (per operator) or O2 (weights too)"
    )
    dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="of the fast operators")
    init_loss_scaling: Annotated[Number, Field(gt=0)] = Field(
        65536.0, description="first loss scale, for float16"
    )


class RunConfig(Section):
    Global: GlobalConfig
    Model: Union[PretrainModelConfig, ClassifierModelConfig]
    Data: DataConfig
    Optimizer: OptimizerConfig
    LRScheduler: LRSchedulerConfig = LRSchedulerConfig()
    AMP: AMPConfig = AMPConfig()

    @property
    def task(self) -> str:
        """The task this config is for: that of its model."""
        return self.Model.task


class _PretrainRunConfig(RunConfig):
    Model: PretrainModelConfig


class _ClassifyRunConfig(RunConfig):
    Model: ClassifierModelConfig


def _schema_for(settings: dict) -> type[RunConfig]:
    # A plain Union would report each error once per member; the name decides beforehand.
    model = settings.get("Model")
    name = model.get("name") if isinstance(model, dict) else None
    classifiers = ClassifierModelConfig.model_fields["name"].annotation.__args__
    return _ClassifyRunConfig if name in classifiers else _PretrainRunConfig


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads, merges, overrides and validates a config.

    Raises:
        FileNotFoundError: the file, or one that it names under `_base_`, is not there.
        ValueError: not YAML, an unknown key, a wrong type or value; one line, all mistakes in it.
    """
    places: dict[tuple, str] = {}  # key path -> where it was set last
    settings = _read(Path(path), places, ())
    for override in overrides:
        _apply_override(settings, override, places)
    try:
        return _schema_for(settings).model_validate(settings)
    except ValidationError as error:
        problems = [_explain(problem, settings, places) for problem in error.errors()]
        raise ValueError("; ".join(problems)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; loading it gives an equal config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def flatten(settings: dict, prefix: str = "") -> dict[str, Any]:
    """{"Global.seed": 0, ...}: the values of nested settings under their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, name) if isinstance(value, dict) else {name: value})
    return flat


def _read(path: Path, places: dict[tuple, str], chain: tuple[Path, ...]) -> dict:
    if path.resolve() in [file.resolve() for file in chain]:
        raise ValueError(f"{path}: {BASE_KEY} goes round in a circle")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        asked_by = f", which {chain[-1]} names under {BASE_KEY}" if chain else ""
        raise FileNotFoundError(f"there is no config file {path}{asked_by}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}: a config is a mapping of sections (Global, Model, Data, ...)")
    own_places: dict[tuple, str] = {}
    own = _construct(node, str(path), (), own_places)
    merged: dict = {}
    bases = own.pop(BASE_KEY, [])
    for base in [bases] if isinstance(bases, str) else bases:
        _merge(merged, _read(path.parent / base, places, (*chain, path)))
    _merge(merged, own)
    places.update(own_places)
    return merged


def _construct(node: yaml.Node, file: str, key_path: tuple, places: dict[tuple, str]) -> Any:
    """A YAML node as plain values, noting the line of each key; a key given twice is an error."""
    places[key_path] = f"{file}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        return yaml.SafeLoader("").construct_object(node, deep=True)
    result: dict = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if key in result:
            raise ValueError(f"{file}, line {line}: {key} is given twice")
        result[key] = _construct(value_node, file, (*key_path, key), places)
        places[(*key_path, key)] = f"{file}, line {line}"
    return result


def _merge(into: dict, other: dict) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _apply_override(settings: dict, override: str, places: dict[tuple, str]) -> None:
    name, equals, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise ValueError(f"-o {override}: write it as Key.sub=value, e.g. Global.seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"-o {override}: {text!r} is not a YAML value") from None
    section = settings
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ValueError(f"-o {override}: {'.'.join(keys[:depth])} holds a value, not keys")
    section[keys[-1]] = value
    places[keys] = f"-o {override}"


def _explain(problem: dict, settings: dict, places: dict[tuple, str]) -> str:
    """One validation problem as "where: key: what is wrong, what to do"."""
    path = tuple(str(part) for part in problem["loc"])
    known = path
    while known and known not in places:  # a missing key is reported where its section is
        known = known[:-1]
    where = places.get(known, "config")
    key = ".".join(path) or "config"
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(path[:-1], settings)
        near = difflib.get_close_matches(path[-1], fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"valid keys are {', '.join(fields)}"
        return f"{where}: {key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: {key}: this key is required"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    suffix = "" if isinstance(given, (dict, Section)) else f", got {given!r}"
    if problem["type"] == "literal_error" and isinstance(given, str):
        options = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(given, options, n=1)
        suffix += f"; did you mean {near[0]}?" if near else ""
    return f"{where}: {key}: {message}{suffix}"


def _fields_at(path: tuple, settings: dict) -> list[str]:
    schema: Any = _schema_for(settings)
    for part in path:
        schema = schema.model_fields[part].annotation
    return list(schema.model_fields)
