"""docs/config.md and its Chinese twin are what the schema says."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import yaml

from passl_mae.models import mae, vit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("make_config", ROOT / "docs/make_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pages_are_current(generator, language):
    page = generator.FILES[language].read_text(encoding="utf-8")
    assert page == generator.render(language), "python docs/make_config.py"


def test_a_page_says_type_limits_default_and_meaning(generator):
    page = generator.render("en")
    for row in (
        "| `accum_iter` | int ≥ 1 | `1` | pieces that a batch is computed in, to save memory |",
        "| `layer_decay` | number > 0, ≤ 1 | `1` | learning-rate factor per layer from the head "
        "down; 1 is off |",
        "| `crop_scale` | 2 numbers | `[0.2, 1]` | share of the area, for crop: resized |",
        "| `crop` | `none`, `pad`, `resized` | `pad` | random crop after padding, random-resized "
        "crop, or none |",
        "| `num_workers` | int ≥ 0 | `null` | (own images only) processes that read; "
        "cores / ranks; 0 reads in the training's own |",
    ):
        assert row in page.splitlines(), row
    assert "| `crop_scale` | 2 个数 | `[0.2, 1]` |" in generator.render("zh")


def test_a_key_without_its_chinese_text_or_a_text_without_its_key_is_an_error(
    generator, tmp_path, monkeypatch
):
    texts = yaml.safe_load(generator.CHINESE.read_text(encoding="utf-8"))
    monkeypatch.setattr(generator, "CHINESE", tmp_path / "config_zh.yaml")
    kept = texts["VitConfig"].pop("in_chans")
    generator.CHINESE.write_text(yaml.safe_dump(texts), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lack a text in config_zh\.yaml: VitConfig\.in_chans"):
        generator.render("zh")
    texts["VitConfig"].update(in_chans=kept, in_chan="a typo")
    generator.CHINESE.write_text(yaml.safe_dump(texts), encoding="utf-8")
    with pytest.raises(ValueError, match=r"keys that are not there: VitConfig\.in_chan$"):
        generator.render("zh")


def test_the_table_of_named_models_is_the_factories(generator, monkeypatch):
    """Each factory's own arguments, and the constructor's defaults for what it leaves open."""
    for room, kind in ((mae, "MAE_Pretrain"), (vit, "MAE_FineTune")):
        defaults = inspect.signature(getattr(room, kind).__init__).parameters
        monkeypatch.setattr(room, kind, dict)
        for pretrain, classifier, size, encoder, decoder in generator.MODELS:
            name = pretrain if room is mae else classifier
            if name is None:
                continue
            given = {} if name == kind else getattr(room, name)()

            def of(*keys, given=given, defaults=defaults):
                return tuple(given[key] if key in given else defaults[key].default for key in keys)

            assert of("img_size", "patch_size") == size
            assert of("embed_dim", "depth", "num_heads") == encoder
            if room is mae:
                assert decoder == of("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
