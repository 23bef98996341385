"""The README's Python runs, its commands' files exist, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = ["README.md", "README_zh.md"]


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", READMES)
def test_the_python_in_it_runs(name):
    (code,) = fenced((ROOT / name).read_text(encoding="utf-8"), "python")
    scope: dict = {}
    exec(compile(code, name, "exec"), scope)
    assert scope["pred"].shape[1:] == [64, 48] or list(scope["pred"].shape) == [1, 64, 48]
    own, taken = scope["classifier"].state_dict(), scope["mae"].state_dict()
    key = "blocks.11.attn.qkv.weight"
    assert (own[key].numpy() == taken[key].numpy()).all()


@pytest.mark.parametrize(
    "name",
    [
        *READMES,
        "CONTRIBUTING.md",
        "docs/weights.md",
        "docs/own-images.md",
        "docs/predict-export.md",
        "docs/results.md",
        "docs/web.md",
    ],
)
def test_files_and_links_in_it_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / name).parent / target).exists(), target
    for path in re.findall(r"\b((?:tools|configs|tests|passl_mae)/[\w/]+\.(?:py|yaml))", text):
        assert (ROOT / path).exists(), path
    assert "@" not in re.sub(r"\S+@\S+\.\w+", "", text).replace("@@", ""), "a gap to fill"
