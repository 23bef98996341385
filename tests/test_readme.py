"""The Python in the README and in the FAQ runs, in both languages, and does what the text says."""

from pathlib import Path

import numpy as np
import pytest
from doc_commands import fenced

ROOT = Path(__file__).resolve().parents[1]


def scope_of(page: str) -> dict:
    """What the page's one Python block leaves."""
    (code,) = fenced((ROOT / page).read_text(encoding="utf-8"), "python")
    scope: dict = {}
    exec(compile(code, page, "exec"), scope)
    return scope


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_the_readmes(page):
    scope = scope_of(page)
    assert list(scope["pred"].shape) == [1, 64, 48]
    own, taken = scope["classifier"].state_dict(), scope["mae"].state_dict()
    key = "blocks.11.attn.qkv.weight"
    assert (own[key].numpy() == taken[key].numpy()).all()


@pytest.mark.parametrize("page", ["docs/faq.md", "docs/faq_zh.md"])
def test_the_faqs_own_mask(page):
    scope = scope_of(page)
    right_half = np.zeros([2, 8, 8])
    right_half[:, :, 4:] = 1
    np.testing.assert_array_equal(scope["mask"].numpy().reshape(2, 8, 8), right_half)
    assert list(scope["features"].shape) == [2, 65, 192]
