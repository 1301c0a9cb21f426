import gzip
import os
import shutil
import struct

import numpy as np
import pytest
import torch

from nets import load_data
from nets.datasets.catalogue import IDX_NAMES
from nets.datasets.errors import DataError
from tests.nets.data_files import idx_bytes, write_idx

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_NAMES


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "."),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "fashion_mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_reads_what_was_written_wherever_it_usually_lies(tmp_path, name, folder, zipped):
    arrays = write_idx(tmp_path / folder, zipped=zipped)
    for train, images, labels in ((True, TRAIN_IMAGES, TRAIN_LABELS), (False, TEST_IMAGES, TEST_LABELS)):
        data = load_data(name, root=str(tmp_path), train=train, standardise=False)
        assert data.inputs.dtype == torch.float64
        assert data.targets.dtype == torch.int64
        assert np.array_equal(data.inputs[:, 0].numpy(), arrays[images])
        assert np.array_equal(data.targets.numpy(), arrays[labels])
        assert data.classes == 10


def test_two_sets_side_by_side_are_told_apart_by_their_folders(tmp_path):
    write_idx(tmp_path / "mnist", train=30)
    write_idx(tmp_path / "fashion_mnist", train=40)
    assert [len(load_data(name, root=tmp_path)) for name in ("mnist", "fashion-mnist")] == [30, 40]


def test_standardised_by_the_whole_training_part_also_for_limited_and_test_data(tmp_path):
    arrays = write_idx(tmp_path)
    pixels = torch.from_numpy(arrays[TRAIN_IMAGES]).double()
    std, mean = torch.std_mean(pixels, correction=0)
    whole = load_data("mnist", root=tmp_path)
    torch.testing.assert_close(whole.inputs[:, 0], (pixels - mean) / std, rtol=1e-14, atol=1e-14)
    test = load_data("mnist", root=tmp_path, train=False)
    expected = (torch.from_numpy(arrays[TEST_IMAGES]).double() - mean) / std
    torch.testing.assert_close(test.inputs[:, 0], expected, rtol=1e-14, atol=1e-14)
    limited = load_data("mnist", root=tmp_path, limit=13, seed=2)
    assert {tuple(row) for row in limited.inputs.flatten(1).tolist()} <= {
        tuple(row) for row in whole.inputs.flatten(1).tolist()
    }


def test_limit_is_balanced_and_nested(tmp_path):
    write_idx(tmp_path, train=95)
    sizes = (10, 14, 40, 95)
    limited = [load_data("mnist", root=tmp_path, limit=size, seed=1) for size in sizes]
    rows = [{tuple(row) for row in data.inputs.flatten(1).tolist()} for data in limited]
    assert [len(kept) for kept in rows] == list(sizes)
    assert rows[0] < rows[1] < rows[2] < rows[3]
    counts = [torch.bincount(data.targets, minlength=10) for data in limited]
    assert all(count.max() - count.min() <= 1 for count in counts)
    with pytest.raises(ValueError, match=r"limit.*95"):
        load_data("mnist", root=tmp_path, limit=96)


def test_pooled_set_is_exact_block_means(tmp_path):
    arrays = write_idx(tmp_path)
    raw = load_data("mnist-7x7", root=tmp_path, standardise=False)
    blocks = arrays[TRAIN_IMAGES].reshape(-1, 7, 4, 7, 4).astype(np.float64)
    assert np.array_equal(raw.inputs[:, 0].numpy(), blocks.mean((2, 4)))
    pooled = load_data("fashion-mnist-7x7", root=tmp_path)
    assert pooled.inputs.shape == (30, 1, 7, 7)
    torch.testing.assert_close(pooled.inputs.mean(), torch.zeros((), dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(pooled.inputs.std(correction=0), torch.ones((), dtype=torch.float64))


def images(count=30, side=28):
    return np.zeros((count, side, side), dtype=np.uint8)


BROKEN = {
    "magic of labels": (TRAIN_IMAGES, idx_bytes(images(), magic=0x0801), "0x00000801.*0x00000803"),
    "little-endian": (TRAIN_IMAGES, struct.pack("<4I", 0x0803, 30, 28, 28) + bytes(30 * 784), "0x03080000"),
    "floats": (TRAIN_IMAGES, idx_bytes(images(), magic=0x0D03), "0x00000d03"),
    "sides": (TRAIN_IMAGES, idx_bytes(images(side=29)), "29×29.*28×28"),
    "truncated": (TRAIN_IMAGES, idx_bytes(images())[:-1], "23,519 bytes.*23,520"),
    "trailing": (TRAIN_IMAGES, idx_bytes(images()) + b"\0", "more bytes.*23,520"),
    "empty": (TRAIN_IMAGES, b"", "0 bytes.*header of 16"),
    "short header": (TRAIN_LABELS, b"\0\0\x08\x01\0\0", "6 bytes.*header of 8"),
    "no examples": (TRAIN_IMAGES, idx_bytes(images(0)), "count of 0"),
    "huge count": (TRAIN_IMAGES, struct.pack(">4I", 0x0803, 2**32 - 1, 28, 28), "4,294,967,295.*60,000"),
    "fewer labels": (TRAIN_LABELS, idx_bytes(np.zeros(29)), "30 images.*29 labels"),
    "label 10": (TRAIN_LABELS, idx_bytes(np.full(30, 10)), r"label 10.*\[0, 10\)"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_with_a_remedy(tmp_path, case, zipped):
    write_idx(tmp_path, zipped=zipped)
    file, content, words = BROKEN[case]
    path = tmp_path / (f"{file}.gz" if zipped else file)
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=words) as caught:
        load_data("mnist", root=tmp_path)
    # both files are named where they disagree
    assert str(path) in str(caught.value)
    assert "download it again, or give root=" in str(caught.value)


def test_corrupt_and_bombing_gz(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    sound = path.read_bytes()
    # zeros behind a sound header: one byte too many is read, no more
    bomb = gzip.compress(idx_bytes(images())) + 64 * gzip.compress(bytes(2**24), 9)
    wrong_sum = sound[:-8] + bytes(4) + sound[-4:]
    for content in (sound[:100], b"no gz at all", sound[:50] + b"\xff\xff\xff" + sound[53:], wrong_sum, bomb):
        path.write_bytes(content)
        with pytest.raises(DataError, match=TRAIN_IMAGES):
            load_data("mnist", root=tmp_path)


def test_missing_files_are_listed_with_the_places(tmp_path):
    with pytest.raises(DataError, match=r"train-images.*t10k-labels.*mnist.*MNIST/raw.*root="):
        load_data("mnist", root=tmp_path)
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / f"{TEST_LABELS}.gz").unlink()
    with pytest.raises(DataError, match=TEST_LABELS) as caught:
        load_data("mnist", root=tmp_path)
    assert TRAIN_IMAGES not in str(caught.value)
    (tmp_path / "mnist" / TEST_LABELS).mkdir()
    with pytest.raises(DataError, match="no regular file"):
        load_data("mnist", root=tmp_path, train=False, standardise=False)


def test_root_that_is_no_folder(tmp_path):
    for name in ("mnist", "cifar-10", "tiny-imagenet"):
        with pytest.raises(DataError, match="no such folder"):
            load_data(name, root=tmp_path / "nowhere")
        with pytest.raises(TypeError, match="root"):
            load_data(name, root=3)


def test_the_variable_is_as_good_as_a_root(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path))
    assert torch.equal(load_data("mnist").inputs, load_data("mnist", root=tmp_path).inputs)
    shutil.rmtree(tmp_path / "MNIST")
    write_idx(tmp_path, zipped=False)
    assert len(load_data("mnist", train=False)) == 20


@pytest.mark.parametrize("root", ["a" * 5000, "~nosuchuser/data"])
def test_a_root_that_no_system_takes_is_a_data_error(root, monkeypatch):
    with pytest.raises(DataError, match="unreadable content"):
        load_data("mnist", root=root)
    monkeypatch.setenv("THALWEG_DATA", root)
    with pytest.raises(DataError, match="unreadable content"):
        load_data("mnist")


@pytest.mark.parametrize(
    ("name", "archive"), [("cifar-10", "cifar-10-binary.tar.gz"), ("tiny-imagenet", "tiny-imagenet-200.zip")]
)
def test_a_pipe_is_not_waited_for(name, archive, tmp_path):
    os.mkfifo(tmp_path / archive)
    with pytest.raises(DataError, match=rf"{archive}.*no regular file"):
        load_data(name, root=tmp_path)
