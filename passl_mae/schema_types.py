"""Kinds of values in a config, and what every section of it has in common."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number_from_text(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no dot) as a string; where a number is wanted it is one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def off_from_false(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


def switch_from_bool(value: Any) -> Any:
    """YAML 1.1 reads bare `on` and `off` as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_number_from_text)]
NonNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Rate = Annotated[Number, Field(ge=0, lt=1)]  # 1 would leave nothing
Count = Annotated[int, Field(ge=1)]


def _is_size(value: Any) -> Any:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError("a size is a whole number of pixels, or [height, width]")
    return value


Size = Annotated[Union[int, list[int]], BeforeValidator(_is_size)]
Channels = Annotated[list[Number], Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False
    )
