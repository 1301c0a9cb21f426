import gzip
import io
import os
import tarfile

import numpy as np
import pytest
import torch

from nets import load_data
from nets.datasets.archives import Bounded, read_tar
from nets.datasets.catalogue import CIFAR_SETS
from nets.datasets.errors import DataError
from tests.nets.data_files import cifar_contents, cifar_members, cifar_records, tar_bytes, tar_member, write_cifar

NAMES = tuple(CIFAR_SETS)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_reads_what_was_written(tmp_path, name, archived):
    kind, contents = CIFAR_SETS[name], cifar_contents(name)
    if archived:
        (tmp_path / kind.archive.name).write_bytes(tar_bytes(cifar_members(name)))
    else:
        write_cifar(tmp_path / kind.folder, name)
    before = sorted(tmp_path.rglob("*"))
    for train, files in ((True, kind.train), (False, kind.test)):
        data = load_data(name, root=tmp_path, train=train, standardise=False)
        table = np.frombuffer(b"".join(contents[file] for file in files), np.uint8).reshape(20 * len(files), -1)
        labels = len(kind.labels)
        assert data.targets.tolist() == table[:, labels - 1].tolist()
        assert data.classes == kind.labels[-1]
        assert data.inputs.shape == (20 * len(files), 3, 32, 32)
        # byte labels + 1024 c + 32 y + x
        assert float(data.inputs[3, 1, 5, 7]) == table[3, labels + 1024 + 32 * 5 + 7]
        assert np.array_equal(data.inputs.flatten(1).numpy(), table[:, labels:])
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


def test_standardised_channel_by_channel(tmp_path):
    write_cifar(tmp_path, "cifar-10")
    raw = load_data("cifar-10", root=tmp_path, standardise=False).inputs
    std, mean = torch.std_mean(raw, dim=(0, 2, 3), correction=0, keepdim=True)
    for train in (True, False):
        values = load_data("cifar-10", root=tmp_path, train=train, standardise=False).inputs
        found = load_data("cifar-10", root=tmp_path, train=train).inputs
        torch.testing.assert_close(found, (values - mean) / std, rtol=1e-13, atol=1e-13)


def broken(content, case):
    return {
        "short record": content[:-1],
        "long": content + b"\0",
        "empty": b"",
        "label": bytes([10]) + content[1:],
    }[case]


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("short record", "whole records of 3,073"),
        ("long", "whole records"),
        ("empty", "0 bytes"),
        ("label", "label 10"),
    ],
)
def test_broken_files_are_named_with_a_remedy(tmp_path, case, words, archived):
    members = [
        tar_member(info.name, broken(content, case)) if info.name.endswith("_3.bin") else (info, content)
        for info, content in cifar_members("cifar-10")
    ]
    if archived:
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar_bytes(members))
    else:
        for info, content in members[1:]:
            (tmp_path / info.name.split("/")[1]).write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3\.bin.*{words}.*give root="):
        load_data("cifar-10", root=tmp_path)


def test_both_kinds_of_label_are_checked(tmp_path):
    write_cifar(tmp_path, "cifar-100")
    for place, label in ((0, 20), (1, 100)):
        table = cifar_records(CIFAR_SETS["cifar-100"], 20, 0)
        table[7, place] = label
        (tmp_path / "train.bin").write_bytes(table.tobytes())
        with pytest.raises(DataError, match=rf"train\.bin.*label {label} in record 7.*\[0, {label}\)"):
            load_data("cifar-100", root=tmp_path)


def test_oversized_files_are_refused_unread(tmp_path):
    write_cifar(tmp_path, "cifar-10")
    os.truncate(tmp_path / "data_batch_2.bin", 2**40)  # a sparse terabyte
    with pytest.raises(DataError, match=r"data_batch_2\.bin.*1,099,511,627,776.*at most 30,730,000"):
        load_data("cifar-10", root=tmp_path)


def test_missing_files_are_listed(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", "cifar-10")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(
        DataError, match=r"data_batch_4\.bin .*cifar-10-batches-bin.*cifar-10-binary\.tar\.gz"
    ) as caught:
        load_data("cifar-10", root=tmp_path, train=False)
    assert "data_batch_1" not in str(caught.value)


HOSTILE = {
    "climbs": tar_member("cifar-10-batches-bin/../../etc/passwd", b"x"),
    "absolute": tar_member("/etc/passwd", b"x"),
    "windows": tar_member("C:\\windows\\system", b"x"),
    "link": tar_member("cifar-10-batches-bin/data_batch_1.bin", kind=tarfile.SYMTYPE),
    "hard link": tar_member("cifar-10-batches-bin/hard", kind=tarfile.LNKTYPE),
    "device": tar_member("cifar-10-batches-bin/null", kind=tarfile.CHRTYPE),
    "pipe": tar_member("cifar-10-batches-bin/pipe", kind=tarfile.FIFOTYPE),
    "twice": tar_member("cifar-10-batches-bin/data_batch_1.bin", bytes(3073)),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_archives_that_point_elsewhere_are_refused(tmp_path, case, last):
    members = cifar_members("cifar-10")
    members.insert(len(members) if last else 1, HOSTILE[case])
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar_bytes(members))
    with pytest.raises(
        DataError, match=r"cifar-10-binary\.tar\.gz: found member '[^']*(passwd|bin|hard|null|pipe|sys)"
    ):
        load_data("cifar-10", root=tmp_path)


def test_archive_without_a_file_or_cut_short(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(tar_bytes(cifar_members("cifar-10")[:-1]))
    with pytest.raises(DataError, match=r"no member .*test_batch\.bin"):
        load_data("cifar-10", root=tmp_path)
    sound = tar_bytes(cifar_members("cifar-10"))
    for content in (b"", b"no archive", sound[: len(sound) // 2], sound[:-4], sound[:-8] + bytes(8)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=str(path)):
            load_data("cifar-10", root=tmp_path)


def test_bombs_are_bounded(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    zeros = gzip.compress(bytes(2**26), 9)
    # a header that names a huge member, one wanted and one not, over megabytes of zeros
    for name in ("wanted", "other"):
        info = tarfile.TarInfo(name)
        info.size = 2**33
        path.write_bytes(gzip.compress(info.tobuf()) + zeros * 8)
        with pytest.raises(DataError, match=r"bomb\.tar\.gz.*at most"):
            read_tar(path, {"wanted": 1000})
    stream = Bounded(io.BytesIO(bytes(11)), 10, "here")
    assert len(stream.read(10)) == 10
    with pytest.raises(DataError, match="here unpacked"):
        stream.read(10)
