"""passl_mae/data/preprocess.py: what a model was trained on is how images are prepared for it."""

import json

import numpy as np
import pytest
from PIL import Image

from passl_mae.data.image_files import decode
from passl_mae.data.image_sets import Reading
from passl_mae.data.preprocess import Preprocessing, from_json, read


@pytest.mark.parametrize("pad_fill", [None, 200])
def test_it_survives_json_and_prepares_files_and_arrays_alike(tmp_path, pad_fill):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    reading = Reading((8, 8), pad_fill=pad_fill)
    before = Preprocessing(reading, (0.5,) * 3, (0.25,) * 3, ["a", "b"])
    prepare = from_json(json.loads(json.dumps(before.to_json())), "here")
    assert prepare.reading.pad_fill == pad_fill and prepare.class_names == ["a", "b"]
    items = [str(tmp_path / "wide.png"), pixels, Image.fromarray(pixels)]
    images, problems = read(items, 0, prepare.reading)
    assert not problems
    expected = decode(items[0], 3, (8, 8), reading.plan, pad_fill=pad_fill)
    for image in images:
        np.testing.assert_array_equal(image, expected)
    # 6 x 12 into 8 x 8: four rows in the middle, and the fill above and below them
    assert (images[0][[0, 1, 6, 7]] == 200).all() == (pad_fill == 200)


def test_a_description_from_before_there_was_padding_is_read():
    content = Preprocessing(Reading((8, 8)), (0.5,) * 3, (0.25,) * 3, []).to_json()
    del content["pad_fill"]
    assert from_json(content, "here").reading.pad_fill is None
    for wrong in (256, "white", True):
        with pytest.raises(ValueError, match="here does not say how to prepare images"):
            from_json({**content, "pad_fill": wrong}, "here")
