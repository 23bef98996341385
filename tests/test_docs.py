"""Every command in README and docs is one that the tools take, and every link leads somewhere.

A command is run by the test that `RUN_BY` names, or its page says "not run" beside it.
"""

import ast
import contextlib
import io
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
from doc_commands import Command, commands_of, fenced, filled

from passl_mae import cli
from passl_mae.ablation import load_ablation
from passl_mae.config import load_config
from passl_mae.schema import RunConfig

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "weights")
PAGES = sorted(str(p.relative_to(ROOT)) for folder in FOLDERS for p in folder.glob("*.md"))
SUMMARIES = {"docs/results.md"}  # whose Chinese page is shorter
TWINS = [p for p in PAGES if (ROOT / p.replace(".md", "_zh.md")).exists() and p not in SUMMARIES]

# The test that runs each script, with real data of its own.
RUN_BY = {
    "tools/ablate.py": "tests/test_ablation.py",
    "tools/attention.py": "tests/test_probe_commands.py",
    "tools/build_ops.py": "tests/fast/test_library.py",
    "tools/convert_weights.py": "tests/models/test_weight_tools.py",
    "tools/dataset_stats.py": "tests/test_own_images.py",
    "tools/demo.py": "tests/test_demo.py",
    "tools/demo_web.py": "tests/web/test_command.py",
    "tools/embed.py": "tests/test_probe_commands.py",
    "tools/evaluate.py": "tests/test_commands.py",
    "tools/export_model.py": "tests/use/test_use_tools.py",
    "tools/extract_encoder.py": "tests/test_commands.py",
    "tools/extract_features.py": "tests/test_probe_commands.py",
    "tools/knn.py": "tests/test_probe_commands.py",
    "tools/linear_probe.py": "tests/test_probe_commands.py",
    "tools/predict.py": "tests/use/test_use_tools.py",
    "tools/train_finetune.py": "tests/test_commands.py",
    "tools/train_pretrain.py": "tests/test_commands.py",
    "tools/visualize.py": "tests/test_commands.py",
    "tools/write_image_list.py": "tests/use/test_efficientnet_commands.py",
    "docs/make_config.py": "tests/test_docs_config.py",
    "tests/faults/kill_and_resume.py": "tests/faults/test_kill_and_resume.py",
    "tests/faults/soak.py": "tests/faults/test_long_runs.py",
    "tests/faults/two_machines.py": "tests/faults/test_long_runs.py",
}
OTHER_PROGRAMS = {"make", "pip", "visualdl", "pytest", ".ci/run"}
FINETUNING = "configs/finetune/demo_shapes.yaml"  # what CONFIG is to the tools for classifiers


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


COMMANDS = [command for page in PAGES for command in commands_of(page, read(page))]


@cache
def parser_of(script: str):
    """The parser that a tool hands to `cli.run`."""
    parsers, original = [], cli.run
    cli.run = lambda main, parser: parsers.append(parser)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        cli.run = original
    return parsers[0]


def parsed(parser, words: list[str]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_args(words)
    except SystemExit:
        pytest.fail(said.getvalue().splitlines()[-1])


@pytest.fixture
def check(tmp_path, monkeypatch):
    """`check(command)` fails where it would not be taken."""

    def own_configs(page: str) -> None:
        for block in fenced(read(page), "yaml"):
            name = re.match(r"# (\S+\.yaml)", block)
            if name:
                (tmp_path / name[1]).write_text(block, encoding="utf-8")

    def config_file(name: str) -> Path:
        own = tmp_path / name
        assert own.exists() or (ROOT / name).exists(), f"no such config: {name}"
        return own if own.exists() else ROOT / name

    def launched(words: list[str]) -> list[str]:
        from paddle.distributed.launch.context.args_envs import parse_args

        monkeypatch.setattr(sys, "argv", ["launch", *words])
        known, unknown = parse_args()
        assert not unknown, f"paddle.distributed.launch has no {unknown}"
        return [known.training_script, *known.training_script_args]

    def script(command: Command, words: list[str]) -> None:
        name, *rest = words
        assert (ROOT / name).exists(), f"no such script: {name}"
        by_hand = name.startswith("benchmarks/")  # their pages hold what they printed
        said = command.not_run or by_hand
        assert said or name in RUN_BY, f"who runs {name}? (RUN_BY, or 'not run')"
        if not name.startswith("tools/"):
            for option in (word for word in rest if word.startswith("--")):
                assert f'"{option}"' in read(name), f"{name} has no {option}"
            return
        args = parsed(parser_of(name), rest)
        if getattr(args, "config", None) is None:
            return
        if name in ("tools/train_finetune.py", "tools/evaluate.py"):
            args.config = FINETUNING if "CONFIG" in command.words else args.config
        file = config_file(args.config)
        header = re.match(r"(#.*\n)*", file.read_text(encoding="utf-8"))[0]
        assert command.not_run or "Not run" not in header, f"{args.config} was not run: say so"
        if name == "tools/ablate.py":
            load_ablation(file, args.override)
            return
        config = load_config(file, getattr(args, "override", []))
        if name in ("tools/train_pretrain.py", "tools/visualize.py"):
            assert config.task != "classify", f"{name} takes no {config.Model.name}"
        if name in ("tools/train_finetune.py", "tools/evaluate.py"):
            assert config.task == "classify", f"{name} takes no {config.Model.name}"

    def check(command: Command) -> None:
        own_configs(command.page)
        words = filled(command.words)
        if words[0] == "python":
            if words[1] == "-m":
                assert words[2] == "paddle.distributed.launch", words[2]
                assert command.not_run or "--devices" not in words, "no GPU: say 'not run'"
                script(command, launched(words[3:]))
            else:
                script(command, words[1:])
        elif words[0] == "-o":  # what a page adds to a command that it showed before
            load_config(config_file(filled(["CONFIG"])[0]), words[1:])
        else:
            assert words[0] in OTHER_PROGRAMS, f"unknown program {words[0]}"
        if words[0] == "make":
            targets = re.search(r"\.PHONY: (.*)", read("Makefile"))[1].split()
            assert set(words[1:]) <= set(targets)
        if words[0] == "pip":
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
                assert f'"{extra}": [' in read("setup.py"), extra

    return check


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_are_taken(check, page):
    for command in (command for command in COMMANDS if command.page == page):
        try:
            check(command)
        except (AssertionError, ValueError, OSError, pytest.fail.Exception) as error:
            raise AssertionError(f"{command}\n{error}") from error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python tools/predict.py --run x a.png --topk 3", "unrecognized arguments: --topk"),
        ("python tools/predict.py a.png", "one of the arguments --run --model is required"),
        ("python tools/nowhere.py", "no such script"),
        ("python tools/train_pretrain.py -c configs/none.yaml", "no such config"),
        ("python tools/train_pretrain.py -c CONFIG -o Global.epochss=1", "did you mean epochs"),
        ("python tools/train_finetune.py -c configs/pretrain/demo_shapes.yaml", "takes no mae_vit"),
        ("python tools/train_pretrain.py -c configs/pretrain/imagenet_vit_b.yaml", "was not run"),
        (
            "python -m paddle.distributed.launch --nprocs 2 tools/train_pretrain.py -c CONFIG",
            "has no .*--nprocs",
        ),
        (
            "python -m paddle.distributed.launch --devices 0,1 tools/train_pretrain.py -c CONFIG",
            "say 'not run'",
        ),
        ("python notebooks/build.py", "who runs notebooks/build.py"),
        ("make tests", "tests"),
        ('pip install -e ".[gpus]"', "gpus"),
        ("-o Global.checkpoint=latest", "did you mean checkpoints"),
        ("conda install paddle", "unknown program conda"),
    ],
)
def test_commands_that_would_fail_a_reader_are_found(check, line, message):
    (command,) = commands_of("README.md", f"```bash\n{line}\n```\n")
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception), match=message):
        check(command)


def test_the_tests_named_run_the_scripts():
    for name, test in RUN_BY.items():
        word = Path(name).stem if name.startswith("tests/") else Path(name).name
        assert word in read(test) or f"import {Path(name).stem}" in read(test), (name, test)


def known_keys(section: type, prefix: str = "") -> set[str]:
    found = set()
    for name, field in section.model_fields.items():
        found.add(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            found |= known_keys(field.annotation, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_keys_scripts_and_options_in_its_text_exist(page):
    text = read(page)
    keys = set().union(*(known_keys(run) for run in RunConfig.__subclasses__()))
    named = re.findall(r"\b(?:Global|Model|Data|Optimizer|LRScheduler|AMP)(?:\.[a-z]\w*)+", text)
    assert not set(named) - keys
    assert "@@" not in text and "TODO" not in text, "a gap to fill"
    for path in re.findall(r"\b((?:tools|configs|tests|passl_mae)/[\w/]+\.(?:py|yaml))", text):
        assert (ROOT / path).exists(), path
    for line in re.findall(r"`python (tools/[^`\n]+)`", text):
        name, *rest = line.split()
        options = {o for action in parser_of(name)._actions for o in action.option_strings}
        assert {word for word in rest if word.startswith("-")} <= options, line


@pytest.mark.parametrize("page", PAGES)
def test_its_python_is_python_and_its_imports_are_there(page):
    for block in fenced(read(page), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("passl_mae"):
                scope: dict = {}
                exec(compile(ast.Module([node], []), page, "exec"), scope)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
        found.add(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", TWINS)
def test_both_languages_have_the_same_commands_configs_and_pictures(page):
    """But for words in Chinese, and for links to pages that have a Chinese twin."""
    twin = page.replace(".md", "_zh.md")

    def signature(page: str) -> list:
        text = read(page)
        commands = [
            shlex.split(shlex.join(filled(command.words)).replace(" --language zh", ""))
            for command in commands_of(page, text)
        ]
        blocks = [
            re.sub(r"\s*#.*", "", block)
            for language in ("yaml", "python")
            for block in fenced(text, language)
        ]
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
        depths = [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
        return [commands, blocks, pictures, depths]

    (commands, *rest), (chinese_commands, *chinese_rest) = signature(page), signature(twin)
    assert len(commands) == len(chinese_commands)
    for words, chinese in zip(commands, chinese_commands):
        named = [w if c.isascii() else c for w, c in zip(words, chinese)]  # 照片.jpg for photo.jpg
        assert (named, len(words)) == (chinese, len(chinese))
    assert rest == chinese_rest
    assert twin.rsplit("/", 1)[-1] in read(page) and page.rsplit("/", 1)[-1] in read(twin)
