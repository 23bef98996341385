"""The schema of Momentum Contrast's configs, and of the ResNets that it trains."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Optional

from pydantic import Field, model_validator

from passl_mae.schema import RunConfig, VitConfig
from passl_mae.schema_types import Count, Number, Probability, Section, Size

_RESNET_KEYS = ("stem", "width", "bn_groups")
_VIT_KEYS = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")


class ContrastModelConfig(VitConfig):
    """Momentum Contrast; None takes the value of the named encoder."""

    task: ClassVar[str] = "contrast"
    name: Literal["MoCo"] = Field(description="the method; the network is base_encoder")
    base_encoder: Literal[
        "resnet18",
        "resnet50",
        "MAE_FineTune",
        "mae_vit_t_p4",
        "mae_vit_s_p4",
        "mae_vit_b_p16",
        "mae_vit_l_p16",
        "mae_vit_h_p14",
    ] = Field("resnet18", description="query and key encoder")
    stem: Optional[Literal["imagenet", "cifar"]] = Field(
        None, description="of a ResNet: 7x7 with pooling (None), or 3x3 for small images"
    )
    width: Optional[Count] = Field(None, description="of a ResNet: channels of its first stage")
    dim: Count = Field(128, description="length of queries and keys")
    queue_size: Count = Field(65536, description="keys in the queue, a multiple of a step's")
    momentum: Probability = Field(0.999, description="share of itself that the key encoder keeps")
    temperature: Annotated[Number, Field(gt=0)] = Field(0.07, description="of the logits")
    mlp: bool = Field(False, description="v2's head: a hidden layer with ReLU")
    symmetric: bool = Field(False, description="each view is a query once, and a key once")
    shuffle_bn: bool = Field(
        True, description="encode the keys in another order, over ranks and groups of BatchNorm"
    )
    bn_groups: Optional[Count] = Field(
        None, description="of a ResNet: groups of a rank's batch that BatchNorm works on"
    )
    knn_bank: Count = Field(
        5000, description="training images that the held-out ones are compared with, at most"
    )
    knn_k: Count = Field(200, description="neighbours that vote")
    knn_temperature: Annotated[Number, Field(gt=0)] = Field(0.1, description="of their votes")

    @model_validator(mode="after")
    def _keys_of_the_encoder(self) -> ContrastModelConfig:
        is_resnet = self.base_encoder.startswith("resnet")
        others = _VIT_KEYS if is_resnet else _RESNET_KEYS
        wrong = [key for key in others if getattr(self, key) is not None]
        if wrong:
            kind = "a ResNet" if wrong[0] not in _VIT_KEYS else "a Vision Transformer"
            raise ValueError(f"{wrong[0]} is of {kind}, and base_encoder is {self.base_encoder}")
        return self


class ResNetModelConfig(Section):
    """A ResNet classifier, e.g. of an encoder that MoCo trained."""

    task: ClassVar[str] = "classify"
    name: Literal["resnet18", "resnet50"] = Field(description="depth of the network")
    img_size: Optional[Size] = Field(None, description="pixels, or [height, width]; 224")
    in_chans: Count = Field(3, description="image channels")
    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet", description="7x7 with pooling, or 3x3 for small images"
    )
    width: Count = Field(64, description="channels of the first stage")
    num_classes: Count = Field(10, description="classes of the head")
    head_bn: bool = Field(False, description="BatchNorm before the head, as in a linear probe")
    freeze: Literal["none", "encoder"] = Field("none", description="what does not learn")


class ContrastRunConfig(RunConfig):
    Model: ContrastModelConfig

    @model_validator(mode="after")
    def _the_queue_moves_once_a_step(self) -> ContrastRunConfig:
        m, batch = self.Model, self.Data.batch_size
        keys = batch * (2 if m.symmetric else 1)
        if m.queue_size % keys:
            of_each = "two keys of each of " if m.symmetric else ""
            raise ValueError(
                f"Model.queue_size {m.queue_size} is not a multiple of the {keys} keys of a step "
                f"({of_each}Data.batch_size {batch}): change one of them"
            )
        if self.Optimizer.accum_iter > 1:
            raise ValueError(
                f"Optimizer.accum_iter {self.Optimizer.accum_iter}: MoCo's queue and key encoder "
                "move once a step, so its batch is computed in one piece (accum_iter 1); spread it "
                "over ranks instead"
            )
        if self.AMP.level == "O2":
            raise ValueError(
                "AMP.level O2 rounds the weights, and the key encoder's steps of 1 - momentum "
                "would be lost: use O1"
            )
        return self


class ResNetRunConfig(RunConfig):
    Model: ResNetModelConfig
