"""Which image files there are, and their labels: folders of classes, plain folders, lists.

Nothing is decoded here. Order and classes follow from names only, so every rank and every run finds
the same.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from passl_mae.data.image_files import EXTENSIONS, show

_LABELLED = re.compile(r"(?P<path>.*[^\s,])(?:[ \t]*,[ \t]*|[ \t]+)(?P<label>[+-]?\d+)", re.DOTALL)
_VAL_FOLDERS, _TEST_FOLDER = ("val", "validation"), "test"


class ImageIndex(NamedTuple):
    """paths: N files; labels: int64 [N]; class_names: one a label, none where there are no labels.

    Without labels, `labels` is all zeros. others: files of the folder that are not named as images.
    """

    paths: list[str]
    labels: np.ndarray
    class_names: list[str]
    others: int = 0


def split_folders(root: str | os.PathLike[str]) -> tuple[Path, Path | None, Path | None]:
    """(training, validation, test) folders of a data set's folder, or None where there is none.

    `root/train` lies beside `root/val` (or `validation`), `root/test` or both. Where there is one
    of them only, as in ImageNet's layout, it is for the test. Without `root/train`, all of `root`
    is for training.

    Raises:
        ValueError: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        what = "a file, and ImageFolder takes a folder" if root.exists() else "no such folder"
        raise ValueError(f"{show(root)}: {what}")
    if not (root / "train").is_dir():
        return root, None, None
    val = next((root / name for name in _VAL_FOLDERS if (root / name).is_dir()), None)
    test = root / _TEST_FOLDER
    if test.is_dir():
        return root / "train", val, test
    return root / "train", None, val


def index_folder(
    folder: str | os.PathLike[str],
    labels: bool | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageIndex:
    """The images of a folder: its subfolders are the classes, or there are none.

    Names that begin with a dot do not count; links are followed.

    Args:
        labels: True wants a subfolder a class, False takes all images at any depth without labels,
            None decides: no labels where the images lie in the folder itself.
        class_names: the classes that there may be; None takes the subfolders, sorted by name.

    Raises:
        ValueError: no such folder, no image in it, images beside the folders of classes, a class
            without images or one that is not in `class_names`.
    """
    root = os.fspath(folder)
    if not os.path.isdir(root):
        raise ValueError(f"{show(root)}: no such folder")
    loose, folders, others = _entries(root)
    if labels is None:
        labels = bool(folders) and not loose
        if folders and loose:
            raise ValueError(
                f"{show(root)} holds images ({show(loose[0])}) beside folders ({show(folders[0])}):"
                " set Data.labels=false to take all of them without labels, or move them"
            )
    if not labels:
        paths, others = _walk(root, ())
        if not paths:
            raise ValueError(f"{show(root)}: no images in it ({_ENDINGS})")
        return ImageIndex(paths, np.zeros(len(paths), np.int64), [], others)
    if loose:
        raise ValueError(
            f"{show(os.path.join(root, loose[0]))}: an image beside the folders of classes"
        )
    if not folders:
        raise ValueError(f"{show(root)}: no folders of classes in it, and Data.labels is true")
    known = list(folders if class_names is None else class_names)
    number_of = {name: number for number, name in enumerate(known)}
    paths, numbers = [], []
    for name in folders:
        if name not in number_of:
            raise ValueError(
                f"{show(os.path.join(root, name))}: there is no class {name!r} among {_some(known)}"
            )
        inner, inner_others = _walk(os.path.join(root, name), ())
        others += inner_others
        if not inner:
            raise ValueError(f"{show(os.path.join(root, name))}: no images of this class in it")
        paths += inner
        numbers += [number_of[name]] * len(inner)
    return ImageIndex(paths, np.array(numbers, np.int64), known, others)


def index_list(
    source: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    labels: bool | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> ImageIndex:
    """The images of a list: lines `path label`, `path,label` or `path`, in UTF-8.

    A whole number at the end of a line, behind spaces, a tab or a comma, is its label, so a path
    may hold spaces itself (the lists of PaddleClas and EasyCV). A folder as `source` holds a
    one-line `name.jpg, label` text file beside each image, at any depth.

    Args:
        image_root: where relative paths begin; None takes the list's own folder.
        labels: False takes each line as a path, True wants a label on each; None goes by the
            first line.
        class_names: one a label.
        num_classes: labels below it are right, where there are no `class_names`.

    Raises:
        ValueError: a line without an image or a label, a label out of range, an image that is not
            there or is named twice (with file and line); a list without lines, or not in UTF-8; in
            a folder, an image without its text file, or one without its image.
    """
    source = os.fspath(source)
    if os.path.isdir(source):
        if image_root is not None:
            raise ValueError("Data.image_root is for a list; here each .txt lies beside its image")
        entries, others = _beside_images(source), 0
        labels = True
    else:
        root = os.path.dirname(source) if image_root is None else os.fspath(image_root)
        entries, others = _lines(source, root), 0
    limit = num_classes if class_names is None else len(class_names)
    paths: list[str] = []
    numbers: list[int] = []
    places: dict[str, str] = {}
    for where, root, text in entries:
        match = _LABELLED.fullmatch(text)
        if labels is None:
            labels = match is not None
        if labels and match is None:
            raise ValueError(
                f"{where}: no label behind the path (`path label`): {text!r}; "
                "Data.labels=false reads a list of paths alone"
            )
        path = os.path.join(root, match["path"] if labels else text)
        number = int(match["label"]) if labels else 0
        if number < 0 or (labels and limit is not None and number >= limit):
            bound = "" if limit is None else f" .. {limit - 1}"
            raise ValueError(f"{where}: label {number} is out of range, labels go from 0{bound}")
        if not os.path.lexists(path):
            raise ValueError(f"{where}: there is no image {show(path)}{_hint(labels, match)}")
        key = os.path.normpath(path)
        if key in places:
            raise ValueError(f"{where}: {show(path)} is named twice, first in {places[key]}")
        places[key] = where
        paths.append(path)
        numbers.append(number)
    if not paths:
        raise ValueError(f"{show(source)}: no images in it")
    if not labels:
        return ImageIndex(paths, np.zeros(len(paths), np.int64), [], others)
    if class_names is None:
        class_names = [str(number) for number in range(limit or max(numbers) + 1)]
    return ImageIndex(paths, np.array(numbers, np.int64), list(class_names), others)


def read_class_names(file: str | os.PathLike[str]) -> list[str]:
    """The names of a file, one a line, or `0 name`, `1 name`, ... as PaddleClas writes them.

    Raises:
        ValueError: not a text file in UTF-8, no names in it, or one twice.
    """
    names = [text for _, text in _text_lines(os.fspath(file))]
    parts = [name.split(maxsplit=1) for name in names]
    if all(len(part) == 2 and part[0] == str(i) for i, part in enumerate(parts)):
        names = [name.rstrip(",") for _, name in parts]
    counts = Counter(names)
    repeated = next((name for name in names if counts[name] > 1), None)
    if not names or repeated is not None:
        what = "no names in it" if not names else f"{repeated!r} is named twice"
        raise ValueError(f"{show(file)}: {what}; write one class a line")
    return names


_ENDINGS = f"files that end in {', '.join(EXTENSIONS)}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(show, names[:5]))
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)})"


def _hint(labels: bool, match: re.Match | None) -> str:
    if not labels and match is not None:
        return ", and labels are off (Data.labels, or the first line has none)"
    return "; see Data.image_root"


def _entries(folder: str) -> tuple[list[str], list[str], int]:
    """(image names, folder names, number of other files) in a folder, sorted."""
    images, folders, others = [], [], 0
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{show(folder)}: {error.strerror}") from None
    for name in names:
        if name.startswith("."):
            continue
        if os.path.isdir(os.path.join(folder, name)):
            folders.append(name)
        elif name.lower().endswith(EXTENSIONS):
            images.append(name)
        else:
            others += 1
    return images, folders, others


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> tuple[list[str], int]:
    """(images at any depth, number of other files); `above` are the folders on the way here."""
    found = os.stat(folder)
    identity = (found.st_dev, found.st_ino)
    if identity in above:
        raise ValueError(f"{show(folder)}: a link to a folder above it, which has no end")
    images, folders, others = _entries(folder)
    paths = [os.path.join(folder, name) for name in images]
    for name in folders:
        inner, inner_others = _walk(os.path.join(folder, name), (*above, identity))
        paths += inner
        others += inner_others
    return paths, others


def _text_lines(file: str) -> list[tuple[int, str]]:
    """(line number, text) of the lines that are not blank."""
    try:
        with open(file, encoding="utf-8-sig", newline=None) as stream:
            text = stream.read()
    except UnicodeDecodeError:
        raise ValueError(f"{show(file)}: not a text file in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{show(file)}: {error.strerror}") from None
    lines = enumerate(text.split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _lines(file: str, root: str) -> list[tuple[str, str, str]]:
    """(where, folder of relative paths, text) of each line of a list."""
    return [(f"{show(file)}, line {n}", root, text) for n, text in _text_lines(file)]


def _beside_images(folder: str) -> list[tuple[str, str, str]]:
    """(where, folder, text) of the text file beside each image."""
    entries, expected = [], set()
    for image in _walk(folder, ())[0]:
        file = os.path.splitext(image)[0] + ".txt"
        if not os.path.exists(file):
            raise ValueError(f"{show(image)}: no {show(os.path.basename(file))} with its label")
        lines = _text_lines(file)
        if len(lines) != 1:
            raise ValueError(f"{show(file)}: {len(lines)} lines instead of one `name.jpg, label`")
        entries.append((f"{show(file)}, line {lines[0][0]}", os.path.dirname(file), lines[0][1]))
        expected.add(file)
    for place, folders, names in os.walk(folder, followlinks=True):  # no circle: it was walked
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = os.path.join(place, name)
            if name.endswith(".txt") and not name.startswith(".") and file not in expected:
                _refuse_lone(file)
    return entries


def _refuse_lone(file: str) -> None:
    """A text file without an image of its name: what it says is lost, or it is none of ours."""
    lines = _text_lines(file)
    where = f"{show(file)}, line {lines[0][0]}" if lines else show(file)
    named = _LABELLED.fullmatch(lines[0][1]) if lines else None
    what = f" ({show(named['path'])})" if named else ""
    raise ValueError(
        f"{where}: there is no image beside it{what}: each .txt of such a folder is the label of "
        "the image of its name; remove it, or bring the image back"
    )
