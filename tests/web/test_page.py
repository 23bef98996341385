"""Chromium on the page: what a visitor does, and what is then in the pictures."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from real_browser import wait_for

from passl_mae import Predictor

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs/images/examples").iterdir())
SCALE = 12  # of the shown pictures: 384 pixels for 32
PANELS = ("original", "masked", "reconstruction", "pasted")


@pytest.fixture(scope="module")
def mae():
    weights = ROOT / "weights/cifar10_cpu_mae.safetensors"
    return Predictor.from_weights(weights, ROOT / "configs/pretrain/cifar10_cpu.yaml", "cpu")


class Visitor:
    """What is on the page, as far as a person sees it."""

    def __init__(self, browser, url: str) -> None:
        self.browser = browser
        browser.get_log("performance")  # what came before is not this visit's
        browser.get(url)
        wait_for(lambda: self.source("pasted"), "the first pictures")

    def one(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def script(self, code: str, *args):
        return self.browser.execute_script(code, *args)

    def text(self, selector: str) -> str:
        found = "let e = document.querySelector(arguments[0]); return e ? e.innerText : ''"
        return self.script(found, selector)

    def source(self, panel: str) -> str:
        """The picture's address, once it is drawn."""
        code = (
            "let i = document.querySelector(arguments[0]); return i && i.naturalWidth ? i.src : ''"
        )
        return self.script(code, f"#{panel} img")

    def picture(self, panel: str) -> np.ndarray:
        """uint8 [32, 32, 3]: what was enlarged for the page."""
        with urllib.request.urlopen(self.source(panel)) as answer:
            pixels = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))
        small = pixels[::SCALE, ::SCALE]
        np.testing.assert_array_equal(pixels, small.repeat(SCALE, 0).repeat(SCALE, 1))
        return small

    def covered(self) -> np.ndarray:
        """bool [8, 8]: patches that are grey in the masked picture."""
        grey = (self.picture("masked") == 128).all(axis=-1)
        return grey.reshape(8, 4, 8, 4).all(axis=(1, 3))

    def wait_until_drawn(self, do) -> None:
        """Does something and waits for the last picture to be another one."""
        before = self.source("pasted")
        do()
        wait_for(lambda: self.source("pasted") not in ("", before), "new pictures")

    def type(self, selector: str, value: str) -> None:
        field = self.one(selector)
        field.send_keys("\ue009a\ue000", value, "\ue007")  # Control-A, the value, Enter

    def click_patch(self, row: int, column: int) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        image = self.one("#masked img")
        self.script("arguments[0].scrollIntoView({block: 'center'})", image)
        width, height = image.size["width"], image.size["height"]
        across, down = (column + 0.5) / 8 - 0.5, (row + 0.5) / 8 - 0.5  # from the centre
        at = round(across * width), round(down * height)
        ActionChains(self.browser).move_to_element_with_offset(image, *at).click().perform()

    def upload(self, file: Path) -> None:
        self.one("#file input[type=file]").send_keys(str(file))

    def messages(self) -> str:
        return self.text(".toast-wrap")


@pytest.fixture
def visitor(browser, page_server):
    return Visitor(browser, page_server.url)


def check_pictures(visitor: Visitor, mae: Predictor, image: Path, ratio: float, seed: int) -> None:
    """All four are what `Predictor` gives; another process may round a pixel otherwise."""
    expected = mae.reconstruct(str(image), ratio, seed)
    arrays = (expected.original, expected.masked(), expected.reconstruction, expected.pasted)
    for panel, array in zip(PANELS, arrays):
        pixels = np.rint(255 * array[0])
        assert np.abs(visitor.picture(panel) - pixels).max() <= 1
    removed = expected.mask[0, ::4, ::4, 0].astype(bool)
    np.testing.assert_array_equal(visitor.covered(), removed)


def test_an_example_is_there_from_the_beginning(visitor, mae, page_server, browser):
    check_pictures(visitor, mae, EXAMPLES[0], 0.75, 0)
    assert "16 of 64 patches visible · mask ratio 0.75" in visitor.text("#count")
    assert "mean and contrast from the original" in visitor.text("#note")  # norm_pix_loss

    weights = ROOT / "weights/cifar10_cpu_classifier.safetensors"
    network = Predictor.from_weights(weights, ROOT / "configs/finetune/cifar10_cpu.yaml", "cpu")
    expected = network.classify(str(EXAMPLES[0]), 5)[0].classes
    shown = re.findall(r"^([a-z]+)\s+(\d+)%$", visitor.text("#classes"), flags=re.MULTILINE)
    assert [name for name, _ in shown] == [score.name for score in expected]
    for (_, share), score in zip(shown, expected):
        assert abs(int(share) - 100 * score.probability) < 1

    hosts = set()
    for line in browser.get_log("performance"):
        event = json.loads(line["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            address = urlsplit(event["params"]["request"]["url"])
            hosts |= {address.netloc} if address.scheme in ("http", "https", "ws", "wss") else set()
    assert hosts == {urlsplit(page_server.url).netloc}


def test_the_slider(visitor, mae):
    number, slider = "#ratio input[type=number]", "#ratio input[type=range]"
    visitor.wait_until_drawn(lambda: visitor.type(number, "0.5"))
    wait_for(lambda: "32 of 64 patches visible" in visitor.text("#count"), "the count")
    check_pictures(visitor, mae, EXAMPLES[0], 0.5, 0)
    assert visitor.covered().sum() == 32
    visitor.one(slider).send_keys("\ue011")  # Home: all the way to the left
    wait_for(lambda: "64 of 64 patches visible" in visitor.text("#count"), "the count")
    assert not visitor.covered().any()
    np.testing.assert_array_equal(visitor.picture("pasted"), visitor.picture("original"))


def test_the_seed_and_drawing_again(visitor, mae):
    visitor.wait_until_drawn(lambda: visitor.type("#seed input", "41"))
    check_pictures(visitor, mae, EXAMPLES[0], 0.75, 41)
    visitor.wait_until_drawn(lambda: visitor.one("#again").click())
    assert visitor.one("#seed input").get_attribute("value") == "42"
    check_pictures(visitor, mae, EXAMPLES[0], 0.75, 42)
    visitor.type("#seed input", "-1")
    wait_for(lambda: "whole number from 0" in visitor.messages(), "a message")
    check_pictures(visitor, mae, EXAMPLES[0], 0.75, 42)


def test_patches_are_clicked(visitor):
    before = visitor.covered()
    row, column = np.argwhere(~before)[3]
    visitor.wait_until_drawn(lambda: visitor.click_patch(row, column))
    wait_for(lambda: "15 of 64 patches visible" in visitor.text("#count"), "the count")
    after = before.copy()
    after[row, column] = True
    np.testing.assert_array_equal(visitor.covered(), after)

    row, column = np.argwhere(before)[-1]
    visitor.wait_until_drawn(lambda: visitor.click_patch(row, column))
    wait_for(lambda: "16 of 64 patches visible" in visitor.text("#count"), "the count")
    after[row, column] = False
    np.testing.assert_array_equal(visitor.covered(), after)
    # where it is uncovered, the original is seen, in the last picture, too
    patch = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
    for panel in ("masked", "pasted"):
        np.testing.assert_array_equal(
            visitor.picture(panel)[patch], visitor.picture("original")[patch]
        )


def test_examples_and_uploads(visitor, mae, tmp_path):
    third = visitor.browser.find_elements("css selector", "#examples button")[2]
    visitor.wait_until_drawn(third.click)
    check_pictures(visitor, mae, EXAMPLES[2], 0.75, 0)

    own = tmp_path / "我的 photo.png"  # wider than high: its centre is taken
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (48, 80, 3), np.uint8)).save(own)
    visitor.wait_until_drawn(lambda: visitor.upload(own))
    check_pictures(visitor, mae, own, 0.75, 0)
    # the drop zone is free for the next one
    wait_for(lambda: visitor.script("return document.querySelector('#file input')"), "the zone")
    visitor.wait_until_drawn(lambda: visitor.upload(EXAMPLES[4]))
    check_pictures(visitor, mae, EXAMPLES[4], 0.75, 0)


def bad_files(folder: Path) -> dict[str, Path]:
    """message -> a file that gets it."""
    text, cut, large, heavy = (folder / f"{name}.png" for name in ("text", "cut", "large", "heavy"))
    text.write_text("not an image")
    cut.write_bytes(EXAMPLES[0].read_bytes()[:900])
    Image.new("L", (1001, 1000)).save(large)
    heavy.write_bytes(bytes(1_200_000))
    return {
        "text.png cannot be read as an image": text,
        "cut.png cannot be read as an image": cut,
        "1001 x 1000 pixels are more than": large,
        "exceed the maximum allowed size of 1": heavy,  # Gradio's own words
    }


def test_bad_files_get_a_message(visitor, mae, page_server, tmp_path):
    before = visitor.source("pasted")
    for message, file in bad_files(tmp_path).items():
        visitor.upload(file)
        wait_for(lambda m=message: m in visitor.messages(), f"{file.name}: {message}")
        visitor.browser.refresh()
        wait_for(lambda: visitor.source("pasted"), "the first pictures")
    assert visitor.source("pasted") == before  # the same example, mask and pixels
    assert "Traceback" not in page_server.text()
    assert "passl_mae_web_" not in visitor.text("body")  # where files lie is no one's business
