"""The schema of EfficientNet's configs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Optional

from pydantic import Field

from passl_mae.schema import RunConfig, Section
from passl_mae.schema_types import Count, Number, Rate, Size


class EfficientNetModelConfig(Section):
    """None takes the value of the named network."""

    task: ClassVar[str] = "classify"
    name: Literal[
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "efficientnet_b4",
        "efficientnet_b5",
        "efficientnet_b6",
        "efficientnet_b7",
    ] = Field(description="network, B0 to B7")
    img_size: Optional[Size] = Field(
        None, description="pixels, or [height, width]; 224, 240, 260, 300, 380, 456, 528, 600"
    )
    in_chans: Count = Field(3, description="image channels")
    num_classes: Count = Field(10, description="classes of the head")
    drop_rate: Optional[Rate] = Field(None, description="dropout before the head; 0.2 to 0.5")
    drop_path: Optional[Rate] = Field(None, description="drop-connect of the last block; 0.2")
    padding: Optional[Literal["symmetric", "same"]] = Field(
        None, description="of convolutions: PyTorch's (None), or TensorFlow's"
    )
    bn_epsilon: Optional[Annotated[Number, Field(gt=0)]] = Field(
        None, description="of BatchNorm; 1e-5, from B5 on 1e-3"
    )
    bn_momentum: Optional[Rate] = Field(
        None, description="share of its statistics that BatchNorm keeps; 0.9, from B5 on 0.99"
    )
    head_bn: bool = Field(False, description="BatchNorm before the head, as in a linear probe")
    freeze: Literal["none", "encoder"] = Field(
        "none", description="what does not learn: none, encoder (all but the head)"
    )
    freeze_bn: Optional[bool] = Field(
        None, description="BatchNorm keeps its statistics; None: where the encoder is frozen"
    )


class EfficientNetRunConfig(RunConfig):
    Model: EfficientNetModelConfig
