"""Configs: YAML files with `_base_`, `-o` overrides, a schema, and the dump of what results.

defaults (`schema.py`) < `_base_` files < the file < `-o Key.sub=value`, then validated. An
error names the file and line (or the override), the key, and the nearest valid key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from passl_mae.schema import ClassifyRunConfig, PretrainRunConfig, RunConfig, Section
from passl_mae.schema_efficientnet import EfficientNetRunConfig
from passl_mae.schema_moco import ContrastRunConfig, ResNetRunConfig

BASE_KEY = "_base_"
# PyYAML's constructors let through whatever they stumble over.
_YAML_ERRORS = (
    yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
)  # fmt: skip
# Beyond any config: aliases that go round or multiply would be followed for ever.
_MAX_DEPTH, _MAX_KEYS = 20, 10_000
_SCHEMAS = (
    PretrainRunConfig,
    ClassifyRunConfig,
    ContrastRunConfig,
    ResNetRunConfig,
    EfficientNetRunConfig,
)


def _schema_for(settings: dict) -> type[RunConfig]:
    # A plain Union would report each error once per member; the name decides beforehand.
    model = settings.get("Model")
    name = model.get("name") if isinstance(model, dict) else None
    for schema in _SCHEMAS:
        if name in schema.model_fields["Model"].annotation.model_fields["name"].annotation.__args__:
            return schema
    return PretrainRunConfig


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
    if path.exists() and not (path.is_file() or path.is_fifo()):
        raise ValueError(f"{path}: a folder or a device, not a config file")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        asked_by = f", which {chain[-1]} names under {BASE_KEY}" if chain else ""
        raise FileNotFoundError(f"there is no config file {path}{asked_by}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}: a config is a mapping of sections (Global, Model, Data, ...)")
    own_places: dict[tuple, str] = {}
    own = _construct(node, str(path), (), own_places)
    merged: dict = {}
    bases = own.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: {BASE_KEY} takes a file name or a list of them, got {bases!r}")
    for base in bases:
        _merge(merged, _read(path.parent / base, places, (*chain, path)))
    _merge(merged, own)
    places.update(own_places)
    return merged


def _construct(node: yaml.Node, file: str, key_path: tuple, places: dict[tuple, str]) -> Any:
    """A YAML node as plain values, noting the line of each key; a key given twice is an error."""
    places[key_path] = f"{file}, line {node.start_mark.line + 1}"
    if len(key_path) > _MAX_DEPTH or len(places) > _MAX_KEYS:
        raise ValueError(f"{places[key_path]}: nested too deeply, or too many keys")
    if not isinstance(node, yaml.MappingNode):
        try:
            return yaml.SafeLoader("").construct_object(node, deep=True)
        except _YAML_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{places[key_path]}: not a value ({reason})") from None
    result: dict = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"{file}, line {line}: a key is a plain name")
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
    except _YAML_ERRORS:
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
