"""Holds the plan of the house: who may import whom, no circles, rooms of a readable size."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "passl_mae"
FILES = sorted(PACKAGE.rglob("*.py"))

# Floor by floor; a module imports its own room and the floors below.
FLOORS = [
    {
        "runtime",
        "schema",
        "schema_data",
        "schema_moco",
        "schema_efficientnet",
        "schema_types",
        "config",
        "distributed",
        "files",
        "safe_pickle",
        "cli",
        "visualize",
        "commands",
        "terminal",
        "ablation",
    },
    {"models", "optim"},
    {"data", "fast", "logger"},
    {"evaluation", "reconstruction", "export", "features", "knn", "probe", "attention"},
    {"engine"},
    {"web"},
]
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    modules = {module_of(other) for other in FILES}
    return {name for name in found if name in modules and name != "passl_mae"}


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_down_the_floors(file):
    module = module_of(file)
    if module == "passl_mae":
        assert imports_of(file) == {"passl_mae.runtime"}
        return
    room = room_of(module)
    assert room in FLOOR_OF, f"{room} is a new room: give it a floor"
    for imported in imports_of(file):
        other = room_of(imported)
        down = FLOOR_OF[other] < FLOOR_OF[room]
        beside = FLOOR_OF[other] == FLOOR_OF[room] and {room, other} != {"data", "models"}
        assert other == room or down or beside, f"{module} must not import {imported}"
    if room in ("data", "models"):
        assert not {"data", "models"} - {room} & {room_of(name) for name in imports_of(file)}


def test_there_is_no_circle():
    graph = {module_of(file): imports_of(file) for file in FILES}
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, f"circle: {' -> '.join((*chain, module))}"
        if module not in done:
            for imported in graph[module] - {module}:
                # importing a submodule runs its package's __init__, which is not a circle
                if not module.startswith(imported + "."):
                    visit(imported, (*chain, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_build_and_the_tools_see_the_config():
    schemas = {module_of(file) for file in FILES if file.name.startswith("schema")}
    config = {"passl_mae.config", *schemas}
    users = {module_of(file) for file in FILES if config & imports_of(file)}
    users -= config
    builders = ("build", "build_contrast", "build_data", "build_images", "build_predictor")
    builders += ("build_probes",)
    # an ablation is made of configs, and of nothing else of the library
    assert users == {f"passl_mae.engine.{name}" for name in builders} | {"passl_mae.ablation"}


def test_only_one_file_calls_paddle_distributed():
    users = {
        module_of(file)
        for file in FILES
        if "paddle.distributed"
        in file.read_text(encoding="utf-8").replace("paddle.distributed.l", "")
    }
    assert users == {"passl_mae.distributed"}


def test_rooms_stay_readable():
    operators = sorted((PACKAGE / "fast/ops").iterdir())
    for file in [*FILES, *operators, *sorted((ROOT / "tools").glob("*.py"))]:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{file.relative_to(ROOT)} has {lines} lines"
