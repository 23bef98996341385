"""Trained networks as files that run without this library, and those files read back.

A folder of an export holds PaddlePaddle's inference model (`model.json` or, from PaddlePaddle 2,
`model.pdmodel`, and `model.pdiparams`), `model.onnx` if asked for, and `export.json`: what goes in
and out, how images are prepared, the names of the classes.

Shapes: B images, L patches, D features.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import paddle
from paddle import nn

from passl_mae.data.preprocess import Preprocessing, from_json
from passl_mae.files import fsync, naming, read_json, write_json
from passl_mae.models.mae import MAE_Pretrain
from passl_mae.reconstruction import predict_pixels

KINDS = ("classifier", "encoder", "reconstruction")
META, STEM, ONNX = "export.json", "model", "model.onnx"
TOLERANCE = 1e-5
OPSET = 17
Runner = Callable[[Sequence[np.ndarray]], "list[np.ndarray]"]
_FORMAT = 1
_TRIED_BATCHES = (1, 5)
_OUTPUTS = {
    "classifier": ["logits [B, classes]; softmax makes them probabilities"],
    "encoder": ["features [B, D]"],
    "reconstruction": [
        "images [B, C, H, W], normalised as the input is",
        "mask [B, 1, H, W], 1 = removed",
    ],
}
_CONVERT = (
    "import sys, paddle2onnx; "
    "paddle2onnx.export(*sys.argv[1:3], save_file=sys.argv[3], opset_version=int(sys.argv[4]), "
    "optimize_tool='onnxoptimizer')"
)


class Classifier(nn.Layer):
    """images float32 [B, C, H, W] -> logits [B, classes]."""

    kind = "classifier"

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.model(images)


class Encoder(nn.Layer):
    """images float32 [B, C, H, W] -> features [B, D], what a classifier's head sees."""

    kind = "encoder"

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.model.forward_features(images)


class Reconstructor(nn.Layer):
    """images float32 [B, C, H, W], noise float32 [B, L] -> what `predict_pixels` gives.

    The patches with the smallest noise stay visible. The noise is an input so that the network is
    a function: neither an exported graph nor ONNX draws it.
    """

    kind = "reconstruction"

    def __init__(self, model: MAE_Pretrain, mask_ratio: float):
        super().__init__()
        self.model = model
        self.mask_ratio = mask_ratio

    def forward(
        self, images: paddle.Tensor, noise: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        return predict_pixels(self.model, images, self.mask_ratio, noise)


class Exported(NamedTuple):
    """What `load_exported` found.

    network: takes and gives tensors as the class of its kind above does.
    mask_ratio, num_patches: of a reconstruction.
    """

    folder: str
    name: str
    kind: str
    network: nn.Layer
    preprocessing: Preprocessing
    mask_ratio: Optional[float]
    num_patches: int
    norm_pix_loss: bool

    def part(self, kind: str, mask_ratio: float | None = None) -> nn.Layer:
        """The network, if it is of this kind.

        Raises:
            ValueError: it is of another, or was exported with another mask ratio.
        """
        if kind != self.kind:
            raise ValueError(
                f"{self.folder} is the export of a {self.kind}, not of a {kind}: make one with "
                f"tools/export_model.py --what {kind}"
            )
        if mask_ratio is not None and mask_ratio != self.mask_ratio:
            raise ValueError(
                f"{self.folder} was exported with mask ratio {self.mask_ratio:g}: it cannot mask "
                f"{mask_ratio:g}; export it anew with --mask-ratio {mask_ratio:g}"
            )
        return self.network


class Report(NamedTuple):
    """Where an export went, and its largest difference to the network it was made of, by runner.

    A difference is divided by the largest absolute output where that is above 1. There is one for
    "paddle.jit.load", for "paddle.inference", and, where it could be tried, for "onnxruntime".
    """

    folder: Path
    differences: dict[str, float]


def export(
    network: Classifier | Encoder | Reconstructor,
    preprocessing: Preprocessing,
    output: str | Path,
    name: str,
    onnx: bool = False,
) -> Report:
    """Writes a network with all that is needed to use it, whole or not at all.

    It is read back and compared with the original, as `paddle.jit.load` and `paddle.inference` and
    onnxruntime run it, on batches of 1 and of 5 random images.

    Args:
        output: a folder that is not there yet, or empty.
        name: of the model, for the person who finds the folder.
        onnx: convert it to ONNX, too.

    Raises:
        ValueError: there is something at `output`; the outputs differ by more than 1e-5; the
            conversion to ONNX failed.
        ModuleNotFoundError: ONNX was asked for and paddle2onnx is not installed.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already: choose another --output, or delete it")
    if onnx:
        _need("paddle2onnx")
    network.eval()
    inputs = _inputs(network, preprocessing)
    with _whole_folder(output) as beside:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PaddlePaddle 2.6 talks about its own innards
            paddle.jit.save(
                network,
                str(beside / STEM),
                input_spec=[
                    paddle.static.InputSpec([None, *shape], "float32", name)
                    for name, shape in inputs.items()
                ],
            )
        tried = [_random(inputs, batch) for batch in _TRIED_BATCHES]
        expected = [_outputs(network, arrays) for arrays in tried]
        static = _load(beside)
        runners = {
            "paddle.jit.load": lambda arrays: _outputs(static, arrays),
            "paddle.inference": _inference(beside),
        }
        if onnx:
            _convert(beside)
            if session := _onnx_session(beside / ONNX):
                runners["onnxruntime"] = session
        differences = {how: _compare(tried, expected, run) for how, run in runners.items()}
        for how, difference in differences.items():
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"the exported model gives other numbers than the trained one: with {how} they "
                    f"differ by {difference:.1e}, allowed is {TOLERANCE:.0e}; nothing was written"
                )
        meta = _meta(network, preprocessing, name, inputs, differences)
        meta["files"] = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
        write_json(beside / META, meta)
    return Report(output, differences)


def load_exported(folder: str | Path) -> Exported:
    """The export in a folder.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / META).is_file():
        raise ValueError(
            f"{folder} holds no exported model ({META} is not there): tools/export_model.py makes "
            "one of a run's folder"
        )
    source = str(folder / META)
    meta = read_json(source)
    preprocessing = from_json(meta.get("preprocess"), source)
    kind, ratio, patches = meta.get("kind"), meta.get("mask_ratio"), meta.get("num_patches")
    if meta.get("format") != _FORMAT or kind not in KINDS:
        raise ValueError(f"{source}: format {meta.get('format')!r} and kind {kind!r} are not known")
    if kind == "reconstruction" and (type(ratio) is not float or type(patches) is not int):
        raise ValueError(f"{source}: a reconstruction has a mask_ratio and num_patches")
    _check_files(folder, meta.get("files"))
    try:
        network = _load(folder)
    except Exception as error:  # paddle raises anything on damaged files
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: the model cannot be loaded: {reason}") from None
    norm_pix_loss = meta.get("norm_pix_loss") is True
    name = str(meta.get("model"))
    return Exported(
        str(folder), name, kind, network, preprocessing, ratio, patches or 0, norm_pix_loss
    )


def _check_files(folder: Path, sizes: Any) -> None:
    """Of the model itself: paddle loads one without its weights and says nothing."""
    sizes = sizes if isinstance(sizes, dict) else {}
    for name in {f"{STEM}.pdiparams", *sizes} - {ONNX}:
        file = folder / Path(name).name
        if not file.is_file() or file.stat().st_size != sizes.get(name):
            raise ValueError(f"{file} is missing, or not as it was written: copy the whole export")


def _inputs(network: nn.Layer, preprocessing: Preprocessing) -> dict[str, list[int]]:
    """Name -> shape without the batch."""
    reading = preprocessing.reading
    inputs = {"images": [reading.channels, *reading.size]}
    if network.kind == "reconstruction":
        inputs["noise"] = [network.model.patch_embed.num_patches]
    return inputs


def _meta(
    network: nn.Layer,
    preprocessing: Preprocessing,
    name: str,
    inputs: dict[str, list[int]],
    differences: dict[str, float],
) -> dict[str, Any]:
    import passl_mae

    masked = network.kind == "reconstruction"
    return {
        "format": _FORMAT,
        "kind": network.kind,
        "model": name,
        "inputs": {key: {"shape": [-1, *shape]} for key, shape in inputs.items()},
        "outputs": _OUTPUTS[network.kind],
        "mask_ratio": float(network.mask_ratio) if masked else None,
        "num_patches": inputs["noise"][0] if masked else None,
        "norm_pix_loss": network.model.norm_pix_loss if masked else None,
        "preprocess": preprocessing.to_json(),
        "differences": differences,
        "passl_mae": passl_mae.__version__,
        "paddle": paddle.__version__,
    }


@contextlib.contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name at the end, or is gone if the block fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.parent / f".{output.name}.{os.getpid()}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    with naming(output):
        try:
            beside.mkdir()
            yield beside
            for path in (*beside.iterdir(), beside):
                fsync(path)
            if output.exists():
                output.rmdir()  # empty
            os.replace(beside, output)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        fsync(output.parent)


def _random(inputs: dict[str, list[int]], batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(batch)
    draws = {"images": rng.standard_normal, "noise": rng.random}
    return [draws[name]((batch, *shape)).astype(np.float32) for name, shape in inputs.items()]


def _outputs(network: nn.Layer, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    with paddle.no_grad():
        found = network(*map(paddle.to_tensor, arrays))
    found = found if isinstance(found, (list, tuple)) else [found]
    return [tensor.astype("float32").numpy() for tensor in found]


def _load(folder: Path) -> nn.Layer:
    network = paddle.jit.load(str(folder / STEM))
    network.eval()
    return network


def _model_file(folder: Path) -> Path:
    """The graph: `.json`, or `.pdmodel` of PaddlePaddle 2."""
    file = folder / f"{STEM}.json"
    return file if file.exists() else file.with_suffix(".pdmodel")


def _inference(folder: Path) -> Runner:
    """Arrays -> arrays, as `paddle.inference` runs an export."""
    from paddle import inference

    config = inference.Config(str(_model_file(folder)), str(folder / f"{STEM}.pdiparams"))
    config.disable_glog_info()
    predictor = inference.create_predictor(config)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for name, array in zip(("images", "noise"), arrays):
            handle = predictor.get_input_handle(name)
            handle.reshape(array.shape)
            handle.copy_from_cpu(array)
        predictor.run()
        names = predictor.get_output_names()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in names]

    return run


def _need(package: str) -> None:
    try:
        __import__(package)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"ONNX needs {package}: pip install 'passl_mae[onnx]' (PaddlePaddle 3)", name=package
        ) from None


def _convert(folder: Path) -> None:
    """In a process of its own, for paddle2onnx aborts where it does not know an operator."""
    files = [_model_file(folder), folder / f"{STEM}.pdiparams", folder / ONNX]
    command = [sys.executable, "-c", _CONVERT, *map(str, files), str(OPSET)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0 or not (folder / ONNX).exists():
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())[-300:]
        raise ValueError(
            f"paddle2onnx could not convert the model (code {done.returncode}): {said}"
        )


def _onnx_session(file: Path) -> Runner | None:
    """Arrays -> arrays, as onnxruntime runs a file; None where it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it lists what it tidies up
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return session.run(None, dict(zip(("images", "noise"), arrays)))

    return run


def _compare(tried: list, expected: list, run: Runner) -> float:
    """The largest difference, see `Report`; infinite for other shapes."""
    largest = 0.0
    for arrays, wanted in zip(tried, expected):
        found = run(arrays)
        if [array.shape for array in found] != [array.shape for array in wanted]:
            return float("inf")
        for a, b in zip(found, wanted):
            difference = float(np.abs(a - b).max()) / max(1.0, float(np.abs(b).max()))
            largest = max(largest, difference if np.isfinite(difference) else float("inf"))
    return largest
