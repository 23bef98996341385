"""Exports: the numbers of the trained network, everything that is needed to use them, no halves."""

import importlib.util
import json
import shutil

import numpy as np
import paddle
import pytest

from passl_mae import Predictor
from passl_mae import export as exporting
from passl_mae.engine.build_predictor import load_run
from passl_mae.export import ONNX, export, load_exported

WHAT = {"classifier": "finetune", "encoder": "finetune", "reconstruction": "pretrain"}
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("paddle2onnx", "onnxruntime"))
NO_ONNX = "paddle2onnx and onnxruntime are not installed: pip install 'passl_mae[onnx]'"


def make(runs, kind, output, **options):
    run = load_run(getattr(runs, WHAT[kind]), device="cpu", cpu_ops="off")
    return run, export(run.part(kind), run.prepare_for(kind), output, run.name, **options)


@pytest.fixture(scope="module")
def exports(runs):
    """{kind: (run, folder)}."""
    made = {}
    for kind in WHAT:
        run, report = make(runs, kind, runs.root / "exports" / kind)
        assert set(report.differences) == {"paddle.jit.load", "paddle.inference"}
        assert max(report.differences.values()) <= 1e-5
        made[kind] = (run, report.folder)
    return made


def inputs(kind, batch):
    rng = np.random.default_rng(batch + 10)
    arrays = [rng.standard_normal((batch, 3, 32, 24)), rng.random((batch, 12))]
    return [a.astype(np.float32) for a in arrays[: 2 if kind == "reconstruction" else 1]]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", list(WHAT))
def test_the_static_model_gives_the_numbers_of_the_trained_one(exports, kind, batch):
    run, folder = exports[kind]
    tensors = [paddle.to_tensor(array) for array in inputs(kind, batch)]
    with paddle.no_grad():
        expected, found = run.part(kind)(*tensors), load_exported(folder).network(*tensors)
        if kind == "reconstruction":
            direct = run.model(tensors[0], 0.75, tensors[1])[2]
            np.testing.assert_array_equal(found[1][:, 0, ::8, ::8].flatten(1), direct)
        else:
            method = run.model if kind == "classifier" else run.model.forward_features
            np.testing.assert_array_equal(expected, method(*tensors))
    for a, b in zip(paddle.utils.flatten(expected), paddle.utils.flatten(found)):
        assert a.shape == b.shape and a.shape[0] == batch
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_export_predicts_as_its_run(runs, exports):
    images = runs.images / "val"
    predictors = {kind: Predictor.from_export(folder) for kind, (_, folder) in exports.items()}
    run = Predictor.from_run(runs.finetune)
    found, expected = predictors["classifier"].classify(images), run.classify(images)
    for a, b in zip(found, expected):
        assert (a.source, [s[:2] for s in a.classes]) == (b.source, [s[:2] for s in b.classes])
        assert [s.probability for s in a.classes] == pytest.approx(
            [s.probability for s in b.classes], abs=1e-5
        )
    features = predictors["encoder"].features(images)
    np.testing.assert_allclose(features, run.features(images), atol=1e-5)
    noise = np.random.default_rng(0).random((15, 12)).astype(np.float32)
    run = Predictor.from_run(runs.pretrain)
    for options in ({"noise": noise}, {"seed": 4}, {"mask_ratio": 0.75}):
        again = predictors["reconstruction"].reconstruct(images, **options)
        for a, b in zip(again, run.reconstruct(images, **options)):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_travels_with_the_model(exports, runs):
    meta = json.loads((exports["classifier"][1] / "export.json").read_text())
    assert meta["kind"] == "classifier" and meta["model"] == "mae_vit_t_p4"
    assert meta["inputs"] == {"images": {"shape": [-1, 3, 32, 24]}}
    assert meta["preprocess"] == json.loads((runs.finetune / "preprocess.json").read_text())
    assert meta["preprocess"]["class_names"] == ["apple", "zebra", "狗 dog"]
    assert meta["preprocess"]["resize_to_cover"] == [37, 27]
    meta = json.loads((exports["reconstruction"][1] / "export.json").read_text())
    assert meta["inputs"]["noise"] == {"shape": [-1, 12]}
    assert (meta["mask_ratio"], meta["norm_pix_loss"]) == (0.75, True)
    assert meta["preprocess"]["class_names"] == []


def test_an_encoder_of_a_pretraining_run(runs, tmp_path):
    run = load_run(runs.pretrain, cpu_ops="off")
    report = export(run.part("encoder"), run.prepare_for("encoder"), tmp_path / "e", run.name)
    found = Predictor.from_export(report.folder).features(runs.images / "val")
    expected = Predictor.from_run(runs.pretrain).features(runs.images / "val")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(not HAS_ONNX, reason=NO_ONNX)
@pytest.mark.parametrize("kind", list(WHAT))
def test_onnxruntime_gives_the_numbers_of_the_trained_network(runs, tmp_path, kind):
    import onnxruntime

    run, report = make(runs, kind, tmp_path / "onnx", onnx=True)
    assert report.differences["onnxruntime"] <= 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / ONNX))
    names = [i.name for i in session.get_inputs()]
    assert names == ["images", "noise"][: len(names)]
    for batch in (1, 5):
        arrays = inputs(kind, batch)
        with paddle.no_grad():
            expected = run.part(kind)(*map(paddle.to_tensor, arrays))
        found = session.run(None, dict(zip(names, arrays)))
        for a, b in zip(found, paddle.utils.flatten(expected)):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_onnx_without_its_packages_says_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.sys.modules, "paddle2onnx", None)  # importing it now fails
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'passl_mae\[onnx\]'"):
        make(runs, "classifier", tmp_path / "x", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_other_numbers_are_refused_and_leave_nothing(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"with paddle\.jit\.load they differ by .*; nothing"):
        make(runs, "encoder", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_differences_are_found():
    expected, off = [np.array([[1.0, -4.0]])], [np.array([[1.0, -3.0]])]
    assert exporting._compare([[]], [expected], lambda arrays: off) == 0.25
    small = [np.array([[0.5]])]
    assert exporting._compare([[]], [small], lambda arrays: [np.array([[0.25]])]) == 0.25
    assert exporting._compare([[]], [small], lambda arrays: expected) == float("inf")
    assert exporting._compare([[]], [small], lambda arrays: [np.array([[np.nan]])]) == float("inf")


def test_nothing_is_overwritten(runs, tmp_path):
    (tmp_path / "mine").write_text("text")
    for output in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match="is there already: choose another --output"):
            make(runs, "encoder", output)
    (tmp_path / "empty").mkdir()
    make(runs, "encoder", tmp_path / "empty")
    assert (tmp_path / "empty/export.json").exists()


def test_an_export_does_one_thing(runs, exports):
    images = runs.images / "val"
    folder = exports["reconstruction"][1]
    predictor = Predictor.from_export(folder)
    with pytest.raises(ValueError, match=r"export of a reconstruction, not of a classifier: make"):
        predictor.classify(images)
    with pytest.raises(ValueError, match=r"with mask ratio 0\.75: it cannot mask 0\.5; export it"):
        predictor.reconstruct(images, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"format 2 and kind 'classifier' are not known"),
        ({"kind": "other"}, r"kind 'other' are not known"),
        ({"kind": "reconstruction"}, r"a reconstruction has a mask_ratio and num_patches"),
        ({"preprocess": None}, r"export\.json does not say how to prepare images"),
        ("model.pdiparams", r"model\.pdiparams is missing, or not as it was written: copy"),
        ("cut", r"model\.pdiparams is missing, or not as it was written: copy"),
        ("export.json", r"holds no exported model \(export\.json is not there\): tools/export_"),
    ],
)
def test_a_damaged_export_is_refused(exports, tmp_path, change, message):
    folder = shutil.copytree(exports["classifier"][1], tmp_path / "x")
    params = folder / "model.pdiparams"
    if change == "cut":
        params.write_bytes(params.read_bytes()[:-50])
    elif isinstance(change, str):
        (folder / change).unlink()
    else:
        meta = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(ValueError, match=message):
        Predictor.from_export(folder)
