"""Which files and labels a layout means, and what is said where it means nothing."""

import numpy as np
import pytest

from passl_mae.data.image_lists import index_folder, index_list, read_class_names, split_folders


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(index, root):
    return [
        (str(path)[len(str(root)) + 1 :], int(label))
        for path, label in zip(index.paths, index.labels)
    ]


def test_class_folders_in_the_order_of_their_names(tmp_path):
    names = ["cat/2.jpg", "cat/10.PNG", "10/x.jpeg", "狗 dog/deep/a b.webp", "狗 dog/z.gif"]
    index = index_folder(touch(tmp_path, *names, "cat/notes.txt", "cat/.hidden.jpg", ".x/a.jpg"))
    assert index.class_names == ["10", "cat", "狗 dog"] and index.others == 1
    assert found(index, tmp_path) == [
        ("10/x.jpeg", 0), ("cat/10.PNG", 1), ("cat/2.jpg", 1),
        ("狗 dog/z.gif", 2), ("狗 dog/deep/a b.webp", 2),
    ]  # fmt: skip
    assert index.labels.dtype == np.int64


def test_folders_without_labels(tmp_path):
    flat = index_folder(touch(tmp_path / "flat", "b.jpg", "a\nb.jpg"))
    assert flat.class_names == [] and found(flat, tmp_path / "flat") == [
        ("a\nb.jpg", 0),
        ("b.jpg", 0),
    ]
    nested = touch(tmp_path / "nested", "b.jpg", "x/y/c.jpg")
    assert len(index_folder(nested, labels=False).paths) == 2
    with pytest.raises(
        ValueError, match=r"nested holds images \(b\.jpg\) beside folders \(x\): se"
    ):
        index_folder(nested)
    with pytest.raises(ValueError, match=r"nested/b\.jpg: an image beside the folders of classes"):
        index_folder(nested, labels=True)
    with pytest.raises(ValueError, match=r"flat/.*: an image beside the folders of classes"):
        index_folder(tmp_path / "flat", labels=True)


def test_the_evaluations_classes_are_numbered_as_the_trainings(tmp_path):
    train = index_folder(touch(tmp_path / "train", "a/1.jpg", "b/1.jpg", "c/1.jpg"))
    val = index_folder(touch(tmp_path / "val", "c/1.jpg", "b/1.jpg"), True, train.class_names)
    assert found(val, tmp_path / "val") == [("b/1.jpg", 1), ("c/1.jpg", 2)]
    assert val.class_names == ["a", "b", "c"]
    touch(tmp_path / "val", "d/1.jpg")
    with pytest.raises(ValueError, match=r"val/d: there is no class 'd' among a, b, c"):
        index_folder(tmp_path / "val", True, train.class_names)


def test_folders_that_mean_nothing(tmp_path):
    touch(tmp_path, "empty/notes.txt", "half/a/1.jpg", "file")
    (tmp_path / "half/b").mkdir()
    with pytest.raises(ValueError, match=r"half/b: no images of this class in it"):
        index_folder(tmp_path / "half")
    with pytest.raises(ValueError, match=r"empty: no images in it \(files that end in \.jpg"):
        index_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"empty: no folders of classes in it, and Data\.labels"):
        index_folder(tmp_path / "empty", labels=True)
    with pytest.raises(ValueError, match="no: no such folder"):
        index_folder(tmp_path / "no")
    with pytest.raises(ValueError, match="no: no such folder"):
        split_folders(tmp_path / "no")
    with pytest.raises(ValueError, match="file: a file, and ImageFolder takes a folder"):
        split_folders(tmp_path / "file")
    (tmp_path / "half/a/loop").symlink_to(tmp_path / "half/a")
    with pytest.raises(ValueError, match="a/loop: a link to a folder above it"):
        index_folder(tmp_path / "half")


def test_links_count_as_what_they_lead_to(tmp_path):
    touch(tmp_path, "elsewhere/1.jpg", "data/a/2.jpg")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")  # reading it will say so
    index = index_folder(tmp_path / "data")
    assert found(index, tmp_path / "data") == [("a/2.jpg", 0), ("a/gone.jpg", 0), ("b/1.jpg", 1)]


@pytest.mark.parametrize(
    ("names", "val", "test"),
    [
        (["val"], None, "val"),  # ImageNet's
        (["validation"], None, "validation"),
        (["test"], None, "test"),
        (["val", "test"], "val", "test"),
        ([], None, None),
    ],
)
def test_folders_of_splits(tmp_path, names, val, test):
    touch(tmp_path, "train/a/1.jpg", *(f"{name}/a/1.jpg" for name in names))
    expected = [name and tmp_path / name for name in ("train", val, test)]
    assert list(split_folders(tmp_path)) == expected


def test_one_folder_is_for_training(tmp_path):
    assert split_folders(touch(tmp_path, "a/1.jpg")) == (tmp_path, None, None)


PATHS = ["a.jpg", "a b/c d 7.jpg", "目录/图 片.png", "x,y.jpg"]


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_with_labels(tmp_path, separator, end):
    touch(tmp_path, *PATHS)
    lines = [f"{path}{separator}{label}" for label, path in enumerate(PATHS)]
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + end.join([*lines, "", ""]).encode())
    index = index_list(tmp_path / "train.txt")
    assert found(index, tmp_path) == [(path, label) for label, path in enumerate(PATHS)]
    assert index.class_names == ["0", "1", "2", "3"]
    again = index_list(tmp_path / "train.txt", class_names=list("abcde"))
    assert again.class_names == list("abcde") and again.paths == index.paths
    assert index_list(tmp_path / "train.txt", num_classes=7).class_names[-1] == "6"


def test_lists_without_labels_and_roots(tmp_path):
    touch(tmp_path / "images", *PATHS)
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists/all.txt"
    file.write_text("\n".join(PATHS))
    index = index_list(file, image_root=tmp_path / "images")
    assert found(index, tmp_path / "images") == [(path, 0) for path in PATHS]
    assert index.class_names == []
    file.write_text(f"{tmp_path}/images/a.jpg 1\n")  # an absolute path needs no root
    assert index_list(file, tmp_path / "no").paths == [f"{tmp_path}/images/a.jpg"]
    touch(tmp_path / "images", "photo 12")
    file.write_text("photo 12\n")
    assert index_list(file, tmp_path / "images", labels=False).paths[0].endswith("photo 12")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            "a.jpg 0\nno.jpg 1",
            {},
            r"t\.txt, line 2: there is no image .*/no\.jpg; see Data\.image_",
        ),
        ("a.jpg 0\nb.jpg", {}, r"line 2: no label behind the path \(`path label`\): 'b\.jpg'"),
        ("a.jpg\nb.jpg 1", {}, r"line 2: there is no image .*b\.jpg 1, and labels are off"),
        ("a.jpg 0\n\nb.jpg -1", {}, r"line 3: label -1 is out of range, labels go from 0"),
        ("a.jpg 0\nb.jpg 2", {"num_classes": 2}, r"line 2: label 2 is out of range, .* 0 \.\. 1"),
        ("a.jpg 3", {"class_names": list("abc")}, r"line 1: label 3 is out of range, .* 0 \.\. 2"),
        ("a.jpg 0\n./a.jpg 1", {}, r"line 2: .*a\.jpg is named twice, first in .*t\.txt, line 1"),
        ("a.jpg 0.5", {}, r"line 1: there is no image .*a\.jpg 0\.5"),
        ("a.jpg", {"labels": True}, r"line 1: no label behind the path"),
        ("5", {}, r"line 1: there is no image"),
        ("", {}, r"t\.txt: no images in it"),
        ("\n \n", {}, r"t\.txt: no images in it"),
    ],
)
def test_mistakes_in_lists_name_file_and_line(tmp_path, text, arguments, message):
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        index_list(tmp_path / "t.txt", **arguments)
    assert "\n" not in str(error.value)


def test_lists_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(ValueError, match=r"no\.txt: No such file"):
        index_list(tmp_path / "no.txt")
    (tmp_path / "gbk.txt").write_bytes("猫咪.jpg 1".encode("gbk"))
    with pytest.raises(ValueError, match=r"gbk\.txt: not a text file in UTF-8; save it as UTF-8"):
        index_list(tmp_path / "gbk.txt")


def test_a_text_file_beside_each_image(tmp_path):
    touch(tmp_path, "img_1.jpg", "sub/图 2.png")
    (tmp_path / "img_1.txt").write_text("img_1.jpg, 3\n")
    (tmp_path / "sub/图 2.txt").write_text("图 2.png, 0")
    index = index_list(tmp_path)
    assert found(index, tmp_path) == [("img_1.jpg", 3), ("sub/图 2.png", 0)]
    assert index.class_names == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="image_root is for a list"):
        index_list(tmp_path, image_root=tmp_path)
    (tmp_path / "img_1.txt").write_text("img_1.jpg, 3\nimg_2.jpg, 4\n")
    with pytest.raises(ValueError, match=r"img_1\.txt: 2 lines instead of one"):
        index_list(tmp_path)
    (tmp_path / "img_1.txt").write_text("cat")
    with pytest.raises(ValueError, match=r"img_1\.txt, line 1: no label behind the path"):
        index_list(tmp_path)
    (tmp_path / "img_1.txt").unlink()
    with pytest.raises(ValueError, match=r"img_1\.jpg: no img_1\.txt with its label"):
        index_list(tmp_path)
    (tmp_path / "img_1.txt").write_text("img_1.jpg, 3\n")
    touch(tmp_path, ".hidden.txt", ".git/notes.txt")
    assert len(index_list(tmp_path).paths) == 2
    (tmp_path / "sub/图 2.png").unlink()
    lone = r"图 2\.txt, line 1: there is no image beside it \(图 2\.png\): each \.txt"
    with pytest.raises(ValueError, match=lone):
        index_list(tmp_path)


def test_class_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("tench\n金鱼 goldfish\n")
    assert read_class_names(file) == ["tench", "金鱼 goldfish"]
    file.write_text("0 tench, Tinca tinca\n1 goldfish\n")  # PaddleClas
    assert read_class_names(file) == ["tench, Tinca tinca", "goldfish"]
    file.write_text("1 one\n0 zero\n")
    assert read_class_names(file) == ["1 one", "0 zero"]
    file.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match=r"names\.txt: 'a' is named twice; write one class a line"):
        read_class_names(file)
    file.write_text("")
    with pytest.raises(ValueError, match=r"names\.txt: no names in it"):
        read_class_names(file)
