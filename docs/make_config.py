"""Writes docs/config.md and docs/config_zh.md: every config key, as the schema has it.

    python docs/make_config.py

The English meanings are the fields' descriptions in passl_mae/schema*.py, the Chinese ones stand in
docs/config_zh.yaml, by section and key. A key without its text is an error.
"""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Any, Union

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from pydantic.fields import FieldInfo

import passl_mae.config  # noqa: F401  it knows all of the schemas
from passl_mae.ablation import Ablation
from passl_mae.schema import RunConfig
from passl_mae.schema_data import IMAGE_KEYS
from passl_mae.schema_types import Section

DOCS = Path(__file__).resolve().parent
CHINESE = DOCS / "config_zh.yaml"
FILES = {"en": DOCS / "config.md", "zh": DOCS / "config_zh.md"}
OWN_IMAGES = "own images only"

# What is the same in every table, in both languages.
WORDS = {
    "en": {
        "head": "| key | type | default | meaning |",
        "required": "required",
        "or": " or ",
        "bool": "bool",
        "int": "int",
        "number": "number",
        "str": "text",
        "list": "list of {}",
        "dict": "mapping",
        "length": "{} {}s",
    },
    "zh": {
        "head": "| 键 | 类型 | 默认值 | 含义 |",
        "required": "必填",
        "or": " 或 ",
        "bool": "布尔",
        "int": "整数",
        "number": "数",
        "str": "字符串",
        "list": "{}的列表",
        "dict": "映射",
        "length": "{} 个{}",
    },
}
INTRO = {
    "en": """# Every config key

[中文](config_zh.md) · made by `python docs/make_config.py` from the schema; do not edit by hand.

A config is YAML with the sections below; `-o Section.key=value` overrides a key
([README](../README.md#settings)). `null` (or nothing behind the colon) is "not set". Where a
model's default is `null`, the [named model](#named-models)'s own value is taken.
""",
    "zh": """# 全部配置项

[English](config.md) · 由 `python docs/make_config.py` 根据 schema 生成,请勿手工修改。

配置文件是 YAML,由下面各节组成;用 `-o 节.键=值` 覆盖([README](../README_zh.md#配置))。
`null`(或冒号后面什么都不写)表示“未设置”。
模型的默认值为 `null` 时,取该[命名模型](#命名模型)自己的值。
""",
}
OUTRO = {
    "en": """## Named models

| `Model.name`: pretraining | classifier | pixels, patch | encoder: width, blocks, heads | decoder |
|---|---|---|---|---|
""",
    "zh": """## 命名模型

| `Model.name`:预训练 | 分类器 | 图像、图像块(像素) | 编码器:宽度、块数、头数 | 解码器 |
|---|---|---|---|---|
""",
}
# tests/test_docs_config.py compares these with the factories.
MODELS = [
    ("mae_vit_t_p4_dec128d2b", "mae_vit_t_p4", (32, 4), (192, 12, 3), (128, 2, 4)),
    ("mae_vit_s_p4_dec256d4b", "mae_vit_s_p4", (32, 4), (384, 12, 6), (256, 4, 8)),
    ("mae_vit_b_p16_dec512d8b", "mae_vit_b_p16", (224, 16), (768, 12, 12), (512, 8, 16)),
    ("mae_vit_l_p16_dec512d8b", "mae_vit_l_p16", (224, 16), (1024, 24, 16), (512, 8, 16)),
    ("mae_vit_h_p14_dec512d8b", "mae_vit_h_p14", (224, 14), (1280, 32, 16), (512, 8, 16)),
    ("MAE_Pretrain", None, (224, 16), (1024, 24, 16), (512, 8, 16)),
    (None, "MAE_FineTune", (224, 16), (768, 12, 12), None),
]


def main() -> None:
    for language, file in FILES.items():
        file.write_text(render(language), encoding="utf-8")
        print(f"wrote {file}")


def render(language: str) -> str:
    """A whole page.

    Raises:
        ValueError: keys without a description or without a Chinese text, or a Chinese text of a key
            that is not there.
    """
    chinese = yaml.safe_load(CHINESE.read_text(encoding="utf-8"))
    used: set[tuple[str, str]] = set()
    parts, lacking = [INTRO[language]], []
    for title, path, section in sections():
        key_of_title = (path if path != "Model" else section.__name__, "_")
        described = (section.__doc__ or "").strip().splitlines()[:1]
        if language == "zh":
            used.add(key_of_title)
            about = chinese.get(key_of_title[0], {}).get("_", "")
        else:
            about = described[0] if described else ""
        if path == "Model" and not about:
            lacking.append(f"{section.__name__}._")
        parts.append(f"## {title}\n" + (f"\n{about}\n" if about else ""))
        rows = [WORDS[language]["head"], "|---|---|---|---|"]
        hints = typing.get_type_hints(section, include_extras=True)
        fields = sorted(section.model_fields.items(), key=lambda field: field[0] != "name")
        for name, field in fields:
            if _is_section(field.annotation):
                continue
            owner = path if path != "Model" else _owner(section, name)
            text = field.description
            if language == "zh":
                used.add((owner, name))
                text = chinese.get(owner, {}).get(name)
            if not text:
                lacking.append(f"{owner}.{name}")
            if path == "Data" and name in IMAGE_KEYS:
                text = f"({OWN_IMAGES if language == 'en' else '仅自己的图像'}) {text}"
            default = _value(field, language)
            kind = _kind(hints[name], WORDS[language])
            cells = [f"`{name}`", kind, default, str(text)]
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("\n".join(rows) + "\n")
    if lacking:
        where = "a description in the schema" if language == "en" else f"a text in {CHINESE.name}"
        raise ValueError(f"these keys lack {where}: {', '.join(lacking)}")
    if language == "zh":
        known = {(section, key) for section, texts in chinese.items() for key in texts}
        if known - used:
            old = ", ".join(sorted(".".join(pair) for pair in known - used))
            raise ValueError(f"{CHINESE.name} has texts of keys that are not there: {old}")
    return "\n".join([*parts, OUTRO[language] + _models()]) + "\n"


def sections() -> list[tuple[str, str, type[Section]]]:
    """(heading, path of the section in a config, its schema), in the order of a config file."""
    runs = RunConfig.__subclasses__()
    found = []
    for name, field in RunConfig.model_fields.items():
        if name == "Model":
            models = [run.model_fields["Model"].annotation for run in runs]
            found += [(f"Model: {_names(model)}", "Model", model) for model in models]
        else:
            found += _with_inner(name, field.annotation)
    titles = {"": "tools/ablate.py", "pretrain": "tools/ablate.py: pretrain, finetune"}
    found.append((titles[""], "ablation", Ablation))
    spec = Ablation.model_fields["finetune"].annotation
    return [*found, (titles["pretrain"], "ablation.finetune", spec)]


def _with_inner(path: str, section: type[Section]) -> list[tuple[str, str, type[Section]]]:
    found = [(path, path, section)]
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            found += _with_inner(f"{path}.{name}", field.annotation)
    return found


def _is_section(annotation: Any) -> bool:
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    annotation = kinds[0] if len(kinds) == 1 else annotation  # Optional[Section]
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _names(model: type[Section]) -> str:
    """A few of the names that choose this schema, enough to know it by."""
    names = typing.get_args(model.model_fields["name"].annotation)
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _owner(section: type[Section], key: str) -> str:
    """The class that declares the key, so that models share one text for what they inherit."""
    inherited = section
    while key in inherited.__base__.model_fields:
        inherited = inherited.__base__
    return inherited.__name__


def _kind(hint: Any, words: dict[str, str], limits: tuple[str, ...] = ()) -> str:
    """A type annotation in words, with its limits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        inner, *notes = arguments
        metadata = [m for note in notes if isinstance(note, FieldInfo) for m in note.metadata]
        length = [getattr(note, "max_length", None) for note in metadata]
        if typing.get_origin(inner) is list and any(length):
            (of,) = typing.get_args(inner)
            return words["length"].format(next(filter(None, length)), _kind(of, words))
        return _kind(inner, words, (*limits, *filter(None, map(_limit, metadata))))
    if origin is Union:
        # null is not said again: a default of null says it
        kinds = [_kind(kind, words) for kind in arguments if kind is not type(None)]
        return words["or"].join(kinds)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return words["list"].format(_kind(arguments[0], words))
    if origin is dict:
        return words["dict"]
    name = words[{"float": "number"}.get(hint.__name__, hint.__name__)]
    return " ".join([name, ", ".join(limits)]).strip()


def _limit(note: Any) -> str:
    for sign, attribute in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")):
        if getattr(note, attribute, None) is not None:
            return f"{sign} {_yaml(getattr(note, attribute))}"
    return ""


def _value(field: FieldInfo, language: str) -> str:
    if field.is_required():
        return WORDS[language]["required"]
    return f"`{_yaml(field.get_default(call_default_factory=True))}`"


def _yaml(value: Any) -> str:
    """A default as one writes it in YAML; 6 figures of a fraction."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


def _models() -> str:
    def joined(values: tuple | None) -> str:
        return "" if values is None else ", ".join(map(str, values))

    def code(name: str | None) -> str:
        return "" if name is None else f"`{name}`"

    return "\n".join(
        f"| {code(pretrain)} | {code(classifier)} | {joined(size)} | {joined(encoder)} "
        f"| {joined(decoder)} |"
        for pretrain, classifier, size, encoder, decoder in MODELS
    )


if __name__ == "__main__":
    main()
