"""`Predictor` against the tools that measure: the same numbers, whatever is given as images."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TINY_FINETUNE

from passl_mae import Predictor, extract_mae_pt
from passl_mae.config import load_config
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import Normalize
from passl_mae.engine.build import build_model, evaluate, load_pretrained
from passl_mae.engine.build_probes import encode, predict
from passl_mae.models.weights import load_file, save_file
from passl_mae.reconstruction import reconstruct


@pytest.fixture(scope="module")
def classifier(runs):
    return Predictor.from_run(runs.finetune, cpu_ops="off", batch_size=7)


@pytest.fixture(scope="module")
def autoencoder(runs):
    return Predictor.from_run(runs.pretrain, cpu_ops="off", batch_size=4)


def test_a_folder_is_classified_as_it_was_evaluated(runs, classifier, config_of):
    predictions = classifier.classify(runs.images / "val", top_k=2)
    predicted, labels, names, _ = predict(config_of("finetune"))
    assert classifier.class_names == names == ["apple", "zebra", "狗 dog"]
    assert [p.classes[0].index for p in predictions] == predicted.tolist()
    assert [Path(p.source).parent.name for p in predictions] == [names[i] for i in labels]
    right = np.mean([Path(p.source).parent.name == p.classes[0].name for p in predictions])
    assert right == pytest.approx(evaluate(config_of("finetune"))[1]["top1"])
    assert right == json.loads((runs.finetune / "result.json").read_text())["test_top1"]
    for prediction in predictions:
        assert [len(prediction.classes), len(prediction[1][0])] == [2, 3]
        assert prediction.classes[0].probability >= prediction.classes[1].probability > 0


def test_probabilities_of_all_classes_sum_to_one(runs, classifier):
    for prediction in classifier.classify(runs.images / "val", top_k=99):
        assert sorted(score.index for score in prediction.classes) == [0, 1, 2]
        assert sum(score.probability for score in prediction.classes) == pytest.approx(1)


def test_features_are_those_of_extract_features(runs, classifier, autoencoder, config_of, tmp_path):
    features = classifier.features(runs.images / "val")
    assert features.dtype == np.float32 and features.shape == (15, 24)
    np.testing.assert_array_equal(features, encode(config_of("finetune")).test.features)

    state = extract_mae_pt(load_file(runs.pretrain / "mae_pretrain.pdparams"))
    save_file(state, tmp_path / "encoder.pdparams")
    frozen = config_of("finetune", f"Global.pretrained_model={tmp_path}/encoder.pdparams")
    expected = encode(frozen).test.features
    np.testing.assert_allclose(autoencoder.features(runs.images / "val"), expected, atol=1e-6)


def test_reconstructions_are_those_of_reconstruct(runs, autoencoder, config_of):
    files = sorted((runs.images / "val").rglob("*.png"))
    config = config_of("pretrain")
    model = build_model(config)
    load_pretrained(model, config.Global.pretrained_model)
    found = autoencoder.reconstruct(files, mask_ratio=0.5, seed=3)
    noise = np.random.default_rng(3).random((15, 12)).astype(np.float32)
    given = autoencoder.reconstruct(files, mask_ratio=0.5, noise=noise)
    images = [_prepared(file) for file in files]
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    images = Normalize(mean, std)(np.stack(images), BatchRandom((0,), 15))
    expected = reconstruct(model, images, 0.5, noise, mean, std)
    for a, b, c in zip(found, given, expected):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=1e-6)
    assert found.mask.shape == (15, 32, 24, 1) and found.mask.mean() == 0.5
    assert autoencoder.reconstruct(files[:1]).mask.mean() == 0.75  # that of the training


def _prepared(file):
    """By hand: the largest box of 37 x 27, resized, and its centre of 32 x 24."""
    image = Image.open(file)
    width, height = image.size
    h, w = min(height, width * 37 / 27), min(width, height * 27 / 37)
    box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
    resized = np.asarray(image.resize((27, 37), Image.Resampling.BICUBIC, box))
    return resized[2:34, 1:25]


def test_paths_images_and_arrays_are_the_same(runs, classifier, tmp_path):
    files = sorted((runs.images / "val/zebra").iterdir())
    expected = classifier.features(files)
    opened = [Image.open(file) for file in files]
    np.testing.assert_array_equal(classifier.features(opened), expected)
    assert opened[0].size == Image.open(files[0]).size  # as it was
    arrays = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_array_equal(classifier.features(arrays), expected)
    mixed = [str(files[0]), opened[1], arrays[2], files[3], arrays[4][None]]
    np.testing.assert_array_equal(classifier.features(mixed), expected)
    np.testing.assert_allclose(classifier.features(arrays[0]), expected[:1], atol=1e-6)
    same = np.stack([arrays[0]] * 9)
    np.testing.assert_allclose(classifier.features(same), expected[[0] * 9], atol=1e-6)
    sources = [p.source for p in classifier.classify(mixed)]
    assert sources == [str(files[0]), "image 1", "image 2", str(files[3]), "image 4"]


def test_grey_transparent_and_rotated_images_are_taken_as_files_are(classifier, tmp_path):
    rng = np.random.default_rng(1)
    for shape in ((50, 40, 1), (50, 40, 4)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels.squeeze()).save(tmp_path / "x.png")
        expected = classifier.features(tmp_path / "x.png")
        np.testing.assert_array_equal(classifier.features(pixels), expected)
        np.testing.assert_array_equal(classifier.features(Image.open(tmp_path / "x.png")), expected)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "r.png", exif=exif)
    expected = classifier.features(tmp_path / "r.png")
    np.testing.assert_array_equal(classifier.features(Image.open(tmp_path / "r.png")), expected)


def test_workers_and_the_batch_size_change_nothing(runs, classifier):
    expected = classifier.features(runs.images)
    other = Predictor.from_run(runs.finetune, cpu_ops="off", batch_size=16, num_workers=1)
    np.testing.assert_allclose(other.features(runs.images), expected, atol=1e-6)
    other._workers.close()


def test_a_run_is_moved_to_where_its_images_are_not(runs, classifier, tmp_path):
    kept = "config.yaml", "preprocess.json", "mae_finetune.pdparams"
    for name in kept:
        (tmp_path / "moved").mkdir(exist_ok=True)
        shutil.copy(runs.finetune / name, tmp_path / "moved" / name)
    config = tmp_path / "moved/config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(str(runs.images), "/nowhere"), encoding="utf-8")
    images = runs.images / "val/apple"
    moved = Predictor.from_run(tmp_path / "moved", cpu_ops="off", batch_size=7)
    assert moved.classify(images) == classifier.classify(images)

    (tmp_path / "moved/preprocess.json").unlink()  # as older versions left it
    with pytest.raises(ValueError, match=r"\(an older run, .* cannot be asked: /nowhere: no "):
        Predictor.from_run(tmp_path / "moved")
    config.write_text(text, encoding="utf-8")
    old = Predictor.from_run(tmp_path / "moved", cpu_ops="off", batch_size=7)
    assert old.preprocessing.to_json() == classifier.preprocessing.to_json()
    assert old.classify(images) == classifier.classify(images)


def test_weights_of_a_checkpoint(runs, classifier):
    last = runs.finetune / "checkpoints/epoch_0002/model.pdparams"
    images = runs.images / "val/apple"
    for number, same in ((2, True), (1, False)):
        weights = str(last).replace("0002", f"000{number}")
        found = Predictor.from_run(runs.finetune, weights, cpu_ops="off", batch_size=7)
        assert (found.classify(images) == classifier.classify(images)) == same


def test_unreadable_images_are_named_or_left_out(runs, classifier, autoencoder, tmp_path):
    files = sorted((runs.images / "val/zebra").iterdir())
    bad = [tmp_path / "empty.jpg", tmp_path / "text.png", tmp_path / "no.png"]
    bad[0].write_bytes(b"")
    bad[1].write_text("hello")
    mixed = [bad[0], *files[:3], bad[1], *files[3:], bad[2]]
    with pytest.raises(ValueError, match=r"empty\.jpg cannot be read as an image: the file is emp"):
        classifier.classify(mixed)
    skipped = []
    np.testing.assert_allclose(
        classifier.features(mixed, skipped), classifier.features(files), atol=1e-6
    )
    assert [(s.place, s.source) for s in skipped] == [
        (0, str(bad[0])),
        (4, str(bad[1])),
        (7, str(bad[2])),
    ]
    assert skipped[2].reason.endswith(
        "no.png cannot be read as an image: No such file or directory"
    )
    names = [p.source for p in classifier.classify(mixed, skipped=[])]
    assert names == [str(file) for file in files]
    left_out = autoencoder.reconstruct(mixed, seed=2, skipped=[])
    for a, b in zip(left_out, autoencoder.reconstruct(files, seed=2)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    autoencoder.draw(mixed, [0.25, 0.5], skipped=skipped)
    assert len(skipped) == 6
    for call in (classifier.features, autoencoder.reconstruct):
        with pytest.raises(ValueError, match="none of the images can be read"):
            call(bad, skipped=[])
    floats = Image.fromarray(np.zeros((9, 9), np.float32))
    with pytest.raises(ValueError, match="image 1 cannot be read: floating-point pixels have no"):
        classifier.classify([files[0], floats])
    half = Image.open(io.BytesIO(files[0].read_bytes()[:900]))
    with pytest.raises(ValueError, match="image 0 cannot be read: "):
        classifier.classify(half)


BYTES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images were given"),
        (BYTES[:0], "no images were given"),
        (BYTES / 255, r"uint8 \[N, H, W, C\] or \[H, W, C\] .* got float64 \[2, 8, 8, 3\]"),
        (BYTES[0, 0], r"got uint8 \[8, 3\]"),
        (BYTES.transpose(0, 3, 1, 2), r"1, 3 or 4 channels, got uint8 \[2, 3, 8, 8\]"),
        (BYTES[:, :0], r"images without pixels: \[2, 0, 8, 3\]"),
        (7, "as paths, PIL images or uint8 arrays, alone or in a list, not as int"),
        ([b"a.png"], "not as bytes"),
        ("no/such.png", r"no/such\.png cannot be read as an image: No such file"),
    ],
)
def test_other_things_are_refused(classifier, images, message):
    with pytest.raises(ValueError, match=message):
        classifier.classify(images)


def test_tensors_and_empty_folders_are_refused(classifier, tmp_path):
    import paddle

    with pytest.raises(ValueError, match="not as Tensor"):
        classifier.classify(paddle.zeros([1, 3, 8, 8]))
    with pytest.raises(ValueError, match=r"no images in it \(files that end in \.jpg"):
        classifier.classify(tmp_path)


def test_a_network_is_not_asked_for_what_it_is_not(runs, classifier, autoencoder):
    images = runs.images / "val"
    with pytest.raises(ValueError, match=r"holds a pretraining model .* knows no classes: finetu"):
        autoencoder.classify(images)
    with pytest.raises(ValueError, match="holds mae_vit_t_p4, which does not reconstruct: give"):
        classifier.reconstruct(images)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        classifier.classify(images, top_k=0)
    with pytest.raises(ValueError, match=r"mask_ratio 0\.99 keeps none of the 12 patches"):
        autoencoder.reconstruct(images, 0.99)
    with pytest.raises(ValueError, match=r"noise must be \[15, 12\], got \[15, 9\]"):
        autoencoder.reconstruct(images, noise=np.zeros((15, 9)))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Predictor.from_run(runs.finetune, batch_size=0)


def test_a_folder_that_is_no_finished_run_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder; give the Global\.output_dir"):
        Predictor.from_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no run \(config\.yaml is not there\)"):
        Predictor.from_run(tmp_path)
    for name in ("config.yaml", "preprocess.json"):
        shutil.copy(runs.finetune / name, tmp_path / name)
    with pytest.raises(ValueError, match=r"no finished weights \(mae_finetune\.pdparams\): the"):
        Predictor.from_run(tmp_path)
    with pytest.raises(ValueError, match=r"mae_pretrain\.pdparams holds a pretraining model: ta"):
        Predictor.from_run(tmp_path, runs.pretrain / "mae_pretrain.pdparams")


def test_weights_of_other_classes_than_the_configs_data_set_are_refused(write_config, tmp_path):
    config = write_config({**TINY_FINETUNE, "Model": {**TINY_FINETUNE["Model"], "num_classes": 12}})
    state = build_model(load_config(config)).state_dict()
    weights = tmp_path / "twelve.pdparams"
    save_file({name: value.numpy() for name, value in state.items()}, weights)
    said = f"{weights}: the data set of its config, Shapes, names 10 classes, and the model has 12"
    with pytest.raises(ValueError, match=re.escape(said)):
        Predictor.from_weights(weights, config, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not json", r"preprocess\.json: not JSON"),
        ([1], r"preprocess\.json: not a JSON object"),
        ({"mean": None}, r"preprocess\.json does not say how to prepare images: .*TypeError"),
        ({"mean": [0.5]}, r"3 channels, mean \(0\.5,\)"),
        ({"std": [1, 0, 1]}, "does not say how to prepare"),
        ({"crop_pct": 2}, "crop_pct 2"),
        ({"max_pixels": 1 << 40}, "max_pixels 1099511627776"),
        ({"img_size": [0, 5]}, "does not say how to prepare"),
        ({"class_names": ["a", 2, "c"]}, "class_names is a list of names"),
        ({"class_names": ["a"]}, "names 1 classes, and the model has 3"),
        ({"img_size": [16, 16]}, "is of another model: this one takes images"),
    ],
)
def test_a_damaged_description_is_refused(runs, tmp_path, change, message):
    for name in ("config.yaml", "preprocess.json", "mae_finetune.pdparams"):
        shutil.copy(runs.finetune / name, tmp_path / name)
    file = tmp_path / "preprocess.json"
    if isinstance(change, dict):
        change = {**json.loads(file.read_text()), **change}
    file.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(ValueError, match=message):
        Predictor.from_run(tmp_path)
