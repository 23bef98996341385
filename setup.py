"""passl_mae: Masked Autoencoders for PaddlePaddle."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
GRADIO = "gradio>=6.31,<7"  # needs Python 3.10, and Pillow below 13
INIT = (ROOT / "passl_mae/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "(.+?)"', INIT)[1]

NOTEBOOKS_AND_PAGES = ["nbformat", "nbclient", "ipykernel", "selenium", GRADIO]

setup(
    name="passl_mae",
    version=VERSION,
    description="Masked Autoencoders (MAE) for PaddlePaddle",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["passl_mae", "passl_mae.*"]),
    package_data={"passl_mae.fast": ["ops/*"]},  # C++ source, compiled by tools/build_ops.py
    python_requires=">=3.9",
    install_requires=[
        "numpy",
        "pydantic>=2",  # the config's schema
        "pyyaml",  # the config's files
        "matplotlib",  # reconstructions and curves
        "filelock",  # one writer for a run's folder
        "pillow",  # image files in, resizing
        "safetensors",  # the weights that ship, and reading and writing such files
        "tqdm",  # progress on a terminal
        "visualdl>=2.4",  # scalars and pictures in the browser
    ],
    # paddlepaddle and paddlepaddle-gpu install the same module: neither can be required of all.
    extras_require={
        "cpu": ["paddlepaddle>=2.6.2,<4"],
        "gpu": ["paddlepaddle-gpu>=2.6.2,<4"],
        "plots": ["scikit-learn"],  # t-SNE
        "onnx": ["paddle2onnx>=2.1", "onnxruntime"],  # exports; with PaddlePaddle 3
        "web": [GRADIO],  # tools/demo_web.py
        "dev": [
            *("pytest", "hypothesis", "ruff", "scikit-learn"),
            # the notebooks in a kernel, the pages in a real browser; with Python 3.9, where Gradio
            # ends and pip takes minutes to choose versions of the rest, those tests are left out
            *(f"{name}; python_version >= '3.10'" for name in NOTEBOOKS_AND_PAGES),
        ],
    },
)
