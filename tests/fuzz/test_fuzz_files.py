"""Bytes flipped, cut off, put in: checkpoints, CIFAR archives, images are read right or refused.

The weights files have a fuzz of their own in tests/models/test_weight_files.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from passl_mae.data.datasets import Cifar10
from passl_mae.data.image_files import read_images
from passl_mae.data.image_lists import index_list
from passl_mae.engine.checkpoint import Checkpoints, Place, load_checkpoint


def quick(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damages(draw):
    """A function bytes -> bytes: flips, cuts, doubles or replaces somewhere."""
    where, kind = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 4))
    value, length = draw(st.integers(1, 255)), draw(st.integers(0, 40))

    def damage(content: bytes) -> bytes:
        at = int(where * len(content))
        if kind == 0:
            return content[:at] + bytes([content[at] ^ value]) + content[at + 1 :]
        if kind == 1:
            return content[:at]
        if kind == 2:
            return content[:at] + bytes([value]) * length + content[at:]
        if kind == 3:
            return content[:at] + bytes([value]) * length + content[at + length :]
        return content[at:] + content[:at]

    return damage


STATE = {
    "model": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "optimizer": {"w/moment1_0": np.ones((2, 3), np.float32)},
    "ema": {"w": np.zeros((2, 3), np.float32)},
    "trainer": {"epoch": 1, "step": 4},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for epoch in (1, 2):
        Checkpoints(folder, keep_last=2).save(Place(epoch), STATE, False)
    return folder


@quick(150)
@given(data=st.data(), damage=damages())
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_taken(checkpoints, data, damage):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoints"
        shutil.copytree(checkpoints, folder)
        newest = folder / "epoch_0002"
        path = newest / data.draw(st.sampled_from(sorted(p.name for p in newest.iterdir())))
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        state = None
        with contextlib.suppress(ValueError):
            state = load_checkpoint(newest)
        if state is None:
            assert path.read_bytes() != whole
            assert Checkpoints(folder, 2).latest().name == "epoch_0001"
        else:  # the damage changed nothing: white space in the manifest, say
            assert state["trainer"] == STATE["trainer"] and state.keys() == STATE.keys()
            np.testing.assert_array_equal(state["model"]["w"], STATE["model"]["w"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@quick(100)
@given(content=JSON)
def test_any_json_as_a_manifest_is_refused(checkpoints, content):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "epoch_0001"
        shutil.copytree(checkpoints / "epoch_0001", folder)
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"the checkpoint cannot be used: .*epoch_0001"):
            load_checkpoint(folder)


@pytest.mark.parametrize("name", ["/dev/zero", "../secret", "..", ".", ""])
def test_a_manifest_that_names_other_files_is_refused_unread(checkpoints, tmp_path, name):
    folder = tmp_path / "epoch_0001"
    shutil.copytree(checkpoints / "epoch_0001", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, name: {}}))
    with pytest.raises(ValueError, match=r"manifest\.json names .*, which is no file of a check"):
        load_checkpoint(folder)


@pytest.fixture(scope="module", params=["w:gz", "w"])
def archive(request):
    path = Path(__file__).resolve().parents[1] / "data/conftest.py"
    spec = importlib.util.spec_from_file_location("small_cifar", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cifar.tar"
        return module.SmallCifar().write_archive(path, request.param).read_bytes()


@quick(120)
@given(damage=damages())
def test_a_damaged_cifar_archive_is_read_or_refused(archive, damage):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cifar-10-python.tar.gz"
        path.write_bytes(damage(archive))
        try:
            dataset = Cifar10("test", path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            images, labels = dataset.fetch(np.arange(len(dataset)))
            assert images.dtype == np.uint8 and images.shape == (len(labels), 32, 32, 3)
            assert ((labels >= 0) & (labels < 10)).all()


def encoded(kind, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGES = {
    "png": lambda: encoded("PNG"),
    "png_palette": lambda: encoded("PNG", "P"),
    "jpeg": lambda: encoded("JPEG"),
    "jpeg_cmyk": lambda: encoded("JPEG", "CMYK"),
    "gif": lambda: encoded("GIF", "P"),
    "bmp": lambda: encoded("BMP"),
    "tiff": lambda: encoded("TIFF", compression="tiff_lzw"),
    "webp": lambda: encoded("WEBP"),
    "ppm": lambda: encoded("PPM"),
    "jp2": lambda: encoded("JPEG2000"),
    "png_16_bits": lambda: encoded("PNG", "I;16"),
    "tiff_jpeg": lambda: encoded("TIFF", compression="jpeg"),
    "jpeg_exif": lambda: encoded("JPEG", exif=EXIF),
}


@quick(60)
@given(damage=damages(), channels=st.sampled_from([1, 3, 4]))
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_is_read_or_refused_with_its_name(kind, damage, channels):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image.{kind}"
        path.write_bytes(damage(IMAGES[kind]()))
        try:
            pixels = read_images([str(path)], (8, 8), channels, max_pixels=1 << 16)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert pixels.shape == (1, 8, 8, channels) and pixels.dtype == np.uint8


@quick(150)
@given(content=st.binary(max_size=80) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_a_list_of_images_are_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_bytes(b"a.jpg 0\n" + content)
        (Path(folder) / "a.jpg").touch()
        try:
            found = index_list(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert found.paths == [str(Path(folder) / "a.jpg")]
