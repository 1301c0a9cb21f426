import struct
import zipfile

import numpy as np
import pytest
import torch

from nets import load_data
from nets.datasets.errors import DataError
from tests.nets.data_files import WNIDS, jpeg, tiny_contents, write_tree, zip_bytes

FOLDER, ARCHIVE = "tiny-imagenet-200", "tiny-imagenet-200.zip"
FIRST = "train/n02/images/n02_1.JPEG"


def put(root, files, archived):
    if archived:
        (root / ARCHIVE).write_bytes(zip_bytes(files))
    else:
        write_tree(root / FOLDER, files)


@pytest.mark.parametrize("archived", [False, True])
def test_reads_what_was_written(tmp_path, archived):
    put(tmp_path, tiny_contents(), archived)
    before = sorted(tmp_path.rglob("*"))
    train, val = (load_data("tiny-imagenet", root=tmp_path, train=part, standardise=False) for part in (True, False))
    assert train.inputs.shape == (12, 3, 64, 64)
    assert val.inputs.shape == (6, 3, 64, 64)
    assert train.classes == 3
    assert train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # wnids.txt's order, not the alphabet's
    assert val.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(train.inputs[0, 0], train.inputs[0, 2])  # the grey one
    colour = np.random.default_rng(11).integers(0, 256, 3)
    assert np.abs(train.inputs[5, :, 30, 30].numpy() - colour).max() <= 3
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked
    standard = load_data("tiny-imagenet", root=tmp_path).inputs
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("archived", [False, True])
def test_without_wnids_the_classes_are_the_sorted_folders(tmp_path, archived):
    files = tiny_contents()
    del files["wnids.txt"]
    put(tmp_path, files, archived)
    data = load_data("tiny-imagenet", root=tmp_path, train=False, standardise=False, limit=5)
    assert data.targets.tolist() in ([1, 0, 0, 2, 2], [1, 1, 0, 2, 2], [1, 1, 0, 0, 2])


def test_the_root_may_be_the_tree_itself(tmp_path):
    write_tree(tmp_path, tiny_contents())
    assert len(load_data("tiny-imagenet", root=tmp_path)) == 12


NOTES = "val/val_annotations.txt"
LINE = "val_0_0.JPEG\tn02\t0\t0\t62\t62\n"
BROKEN = {
    "no jpeg": ({FIRST: b"not an image"}, r"n02_1\.JPEG"),
    "png": ({FIRST: jpeg(file_format="PNG")}, r"n02_1\.JPEG"),
    "cut short": ({FIRST: jpeg()[:-200]}, r"n02_1\.JPEG"),
    "size": ({FIRST: jpeg(size=(64, 63))}, r"n02_1\.JPEG.*64×63.*64×64"),
    "pixel bomb": (
        {FIRST: jpeg().replace(struct.pack(">HH", 64, 64), b"\xff\xff\xff\xff", 1)},
        r"n02_1\.JPEG.*(pixels|65535)",
    ),
    "oversized": ({FIRST: jpeg() + bytes(2**20)}, r"n02_1\.JPEG.*at most 1,048,576"),
    "empty class": ({f"train/n01/images/n01_{n}.JPEG": None for n in range(4)}, "n01/images.*no .JPEG"),
    "class without folder": ({"wnids.txt": b"n01\nn02\nn03\nn04"}, r"wnids\.txt.*'n04'"),
    "folder without class": ({"wnids.txt": b"n01\nn02"}, r"wnids\.txt.*'n03'"),
    "class twice": ({"wnids.txt": b"n01\nn02\nn03\nn02"}, r"wnids\.txt.*twice"),
    "climbing class": ({"wnids.txt": b"n01\nn02\nn03\n../val"}, r"wnids\.txt.*'\.\./val'"),
    "not text": ({"wnids.txt": b"\xff\xfe\xfd"}, r"wnids\.txt.*UTF-8"),
}
BROKEN_VAL = {
    "no annotations": ({NOTES: None}, r"val_annotations\.txt.*no such file"),
    "empty annotations": ({NOTES: b""}, r"val_annotations\.txt.*no line for 'val_0_0"),
    "unknown file": ({NOTES: LINE.replace("0_0", "9_9").encode()}, r"val_annotations\.txt.*'val_9_9\.JPEG' in line 1"),
    "climbing file": ({NOTES: b"../../train/n01/images/n01_1.JPEG\tn01"}, r"val_annotations\.txt.*line 1"),
    "unknown class": ({NOTES: LINE.replace("n02", "n09").encode()}, r"val_annotations\.txt.*'n09' in line 1"),
    "no class": ({NOTES: b"val_0_0.JPEG"}, r"val_annotations\.txt.*class '' in line 1"),
    "file twice": ({NOTES: (LINE + LINE).encode()}, r"val_annotations\.txt.*again in line 2"),
    "file left out": ({NOTES: LINE.encode()}, r"val_annotations\.txt.*no line for 'val_0_1"),
    "broken image": ({"val/images/val_0_0.JPEG": b""}, r"val_0_0\.JPEG"),
}


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("case", [*BROKEN, *BROKEN_VAL])
def test_broken_trees_are_named_with_a_remedy(tmp_path, case, archived):
    change, words = (BROKEN | BROKEN_VAL)[case]
    files = {name: content for name, content in (tiny_contents() | change).items() if content is not None}
    put(tmp_path, files, archived)
    if not archived:  # an emptied class keeps its folder
        (tmp_path / FOLDER / "train" / "n01" / "images").mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match=words) as caught:
        load_data("tiny-imagenet", root=tmp_path, train=case in BROKEN)
    assert "give root=" in str(caught.value)
    assert (ARCHIVE if archived else FOLDER) in str(caught.value)


def test_empty_and_half_empty_folders(tmp_path):
    with pytest.raises(DataError, match=r"no train/, val/.*tiny-imagenet-200.*tiny-imagenet-200\.zip"):
        load_data("tiny-imagenet", root=tmp_path)
    (tmp_path / FOLDER / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train: found 0 class folders"):
        load_data("tiny-imagenet", root=tmp_path)


def test_too_many_classes(tmp_path):
    for number in range(201):
        (tmp_path / "train" / f"n{number:03}").mkdir(parents=True)
    with pytest.raises(DataError, match=r"201 class folders.*1 to 200"):
        load_data("tiny-imagenet", root=tmp_path)


def link(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


HOSTILE = {
    "climbs": zipfile.ZipInfo(f"{FOLDER}/train/n01/images/../../../../../etc/passwd.JPEG"),
    "absolute": zipfile.ZipInfo("/etc/passwd"),
    "windows": zipfile.ZipInfo("C:/windows"),
    "link": link(f"{FOLDER}/train/n01/images/n01_9.JPEG"),
    "twice": zipfile.ZipInfo(f"./{FOLDER}/wnids.txt"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_archives_that_point_elsewhere_are_refused(tmp_path, case):
    put(tmp_path, tiny_contents() | {HOSTILE[case]: b"x"}, archived=True)
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip: found member '[^']*(passwd|windows|JPEG|wnids)"):
        load_data("tiny-imagenet", root=tmp_path)


def test_broken_archives(tmp_path):
    sound = zip_bytes(tiny_contents())
    path = tmp_path / ARCHIVE
    place = sound.index(jpeg(1)[:20]) if jpeg(1)[:20] in sound else 400
    for content in (
        b"",
        b"PK no zip",
        sound[:-30],
        sound[: len(sound) // 2],
        zip_bytes({}),
        zip_bytes({"a": b""}, "b/"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=ARCHIVE):
            load_data("tiny-imagenet", root=tmp_path)
    path.write_bytes(sound[:place] + bytes([sound[place] ^ 255]) + sound[place + 1 :])
    with pytest.raises(DataError, match=ARCHIVE):
        load_data("tiny-imagenet", root=tmp_path)


def test_the_classes_written_are_not_in_alphabetical_order():
    assert list(WNIDS) != sorted(WNIDS)
