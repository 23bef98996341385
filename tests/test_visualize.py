"""Figures and reconstructions: what is drawn is what was computed."""

import numpy as np
import paddle
import pytest
from PIL import Image

import passl_mae
from passl_mae.reconstruction import reconstruct
from passl_mae.visualize import curves_figure, figure_pixels, reconstruction_figure, save_figure

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def tiny_mae(**kwargs):
    return passl_mae.MAE_Pretrain(
        img_size=(8, 16), patch_size=4, embed_dim=8, depth=1, num_heads=2,
        decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2, **kwargs,
    )  # fmt: skip


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 3, 8, 16)).astype(np.float32) * 0.5


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_reconstruction_is_in_pixels_patch_by_patch(images, norm_pix_loss):
    """Every pixel against loops over patches: place, mask, and both ways back to pixels."""
    model = tiny_mae(norm_pix_loss=norm_pix_loss)
    noise = np.random.default_rng(1).random((2, 8)).astype(np.float32)
    result = reconstruct(model, images, 0.5, noise, MEAN, STD)
    model.eval()
    _, pred, mask = model(paddle.to_tensor(images), 0.5, paddle.to_tensor(noise))
    pred, mask = pred.numpy(), mask.numpy()
    for b in range(2):
        for patch in range(8):
            rows = slice(4 * (patch // 4), 4 * (patch // 4) + 4)
            cols = slice(4 * (patch % 4), 4 * (patch % 4) + 4)
            target = images[b, :, rows, cols].transpose(1, 2, 0)  # [4, 4, C]
            values = pred[b, patch].reshape(4, 4, 3)
            if norm_pix_loss:
                values = values * np.sqrt(target.var(ddof=1) + 1e-6) + target.mean()
            original = np.clip(target * STD + np.array(MEAN), 0, 1)
            drawn = np.clip(values * STD + np.array(MEAN), 0, 1)
            removed = mask[b, patch] == 1
            np.testing.assert_allclose(result.original[b, rows, cols], original, atol=1e-6)
            np.testing.assert_allclose(result.reconstruction[b, rows, cols], drawn, atol=1e-5)
            np.testing.assert_allclose(
                result.pasted[b, rows, cols], drawn if removed else original, atol=1e-5
            )
            grey = result.masked(0.5)[b, rows, cols]
            np.testing.assert_allclose(grey, 0.5 if removed else original, atol=1e-6)


def test_reconstruct_leaves_the_mode_and_gradients_alone(images):
    model = tiny_mae()
    model.train()
    reconstruct(model, images, 0.25, np.zeros((2, 8), np.float32), MEAN, STD)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_figure_shows_each_image_where_it_belongs():
    """Rows are images, columns the original and the panels: read back from the drawn canvas."""
    rng = np.random.default_rng(0)
    images = [rng.random((2, 4, 6, 3)).astype(np.float32) for _ in range(4)]
    panels = {0.25: {"masked": images[1], "reconstruction": images[2]}, 0.5: {"masked": images[3]}}
    figure = reconstruction_figure(images[0], panels, note="a note")
    (axes,) = figure.axes
    canvas = axes.images[0].get_array()
    # a 6-pixel image is enlarged 16 times to 96, gaps are 4 and 15 pixels
    assert canvas.shape == (2 * 64 + 4, 96 + 15 + 96 + 4 + 96 + 15 + 96, 3)
    for row in range(2):
        for image, left in zip(images, (0, 111, 211, 322)):
            drawn = canvas[row * 68 : row * 68 + 64, left : left + 96]
            np.testing.assert_array_equal(drawn[::16, ::16], image[row])
            np.testing.assert_array_equal(drawn[15::16, 15::16], image[row])
    titles = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert titles["original"] == 48 and titles["mask ratio 0.25"] == (111 + 307) / 2
    assert [text.get_text() for text in figure.texts] == ["a note"]


def test_a_grey_image_is_drawn_in_grey():
    figure = reconstruction_figure(np.full((1, 4, 4, 1), 0.25, np.float32), {})
    assert np.unique(figure.axes[0].images[0].get_array()) == [0.25]


def test_curves_hold_the_rows_they_were_given():
    rows = [
        {"epoch": 1, "train_loss": 2.0, "lr": 0.1, "train_top1": 0.2},
        {
            "epoch": 2,
            "train_loss": 1.0,
            "lr": 0.05,
            "train_top1": 0.5,
            "eval_top1": 0.4,
            "eval_loss": 3.0,
        },
    ]
    figure = curves_figure(rows)
    lines = {
        (axes.get_ylabel(), line.get_label()): line.get_xydata().tolist()
        for axes in figure.axes
        for line in axes.lines
    }
    assert lines[("loss", "training")] == [[1, 2.0], [2, 1.0]]
    assert lines[("loss", "held out")] == [[2, 3.0]]
    assert lines[("accuracy (%)", "held out, top-1")] == [[2, 40.0]]
    assert len(figure.axes) == 3
    assert len(curves_figure([{"epoch": 1, "train_loss": 2.0, "lr": 0.1}]).axes) == 2


def test_a_saved_figure_is_a_whole_png_and_nothing_is_left_beside(tmp_path):
    figure = curves_figure([{"epoch": 1, "train_loss": 2.0, "lr": 0.1}])
    path = tmp_path / "deep" / "curves.png"
    save_figure(figure, path)
    with Image.open(path) as image:
        image.load()
        assert image.size[0] > 500
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]
    assert figure_pixels(figure).dtype == np.uint8
