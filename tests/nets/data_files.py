"""Small data files in the formats of the real ones, for tests to read, to break and to fuzz."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nets.datasets.catalogue import CIFAR_SETS, IDX_NAMES, TINY_IMAGENET

PROJECT = Path(__file__).parents[2]
WNIDS = ("n02", "n01", "n03")


def real_root(folder):
    """The folder with real data, or a skip that says why."""
    candidates = [Path(os.environ["THALWEG_DATA"])] if os.environ.get("THALWEG_DATA") else []
    for root in [*candidates, PROJECT.parent / "shared" / "data"]:
        if (root / folder).is_dir():
            return root
    return pytest.skip(f"no {folder}/ under THALWEG_DATA or ../shared/data")


def idx_bytes(array, magic=None):
    """An array of bytes as an idx file."""
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def idx_arrays(count, seed):
    """Images and balanced labels."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, np.arange(count, dtype=np.uint8) % 10


def write_idx(folder, train=30, test=20, zipped=True):
    """The four files of an idx set; returns the arrays by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = dict(zip(IDX_NAMES, (*idx_arrays(train, 0), *idx_arrays(test, 1)), strict=True))
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content, 1) if zipped else content)
    return arrays


def cifar_records(kind, count, seed):
    """Records of one file, as an array (count, label bytes + 3072)."""
    generator = np.random.default_rng(seed)
    labels = [((np.arange(count) + 3 * place) % classes)[:, None] for place, classes in enumerate(kind.labels)]
    return np.hstack([*labels, generator.integers(0, 256, (count, 3072))]).astype(np.uint8)


def cifar_contents(name, count=20):
    """The files of a CIFAR set by name."""
    kind = CIFAR_SETS[name]
    return {each: cifar_records(kind, count, seed).tobytes() for seed, each in enumerate((*kind.train, *kind.test))}


def write_cifar(folder, name, count=20):
    """A CIFAR set as files; returns their contents."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = cifar_contents(name, count)
    for each, content in contents.items():
        (folder / each).write_bytes(content)
    return contents


def tar_member(name, content=b"", kind=tarfile.REGTYPE):
    """A header and its content."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), "target" if kind != tarfile.REGTYPE else ""
    return info, content


def tar_bytes(members):
    """A tar.gz of members."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def cifar_members(name, count=20):
    """The members of a CIFAR archive."""
    folder = CIFAR_SETS[name].folder
    files = [tar_member(f"{folder}/{each}", content) for each, content in cifar_contents(name, count).items()]
    return [tar_member(folder, kind=tarfile.DIRTYPE), *files]


def jpeg(seed=0, size=(64, 64), mode="RGB", file_format="JPEG"):
    """An image file of one colour, which JPEG keeps to within a few steps."""
    colour = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))
    image = Image.new("RGB", size, colour).convert(mode)
    target = io.BytesIO()
    image.save(target, format=file_format)
    return target.getvalue()


def tiny_contents(wnids=WNIDS, train=4, val=2):
    """The files of a Tiny-ImageNet tree by name: ``train`` and ``val`` images a class, one of them grey."""
    files = {"wnids.txt": "\n".join(wnids).encode(), "words.txt": b"n01\tgoldfish"}
    lines = []
    for place, wnid in enumerate(wnids):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        for number in range(train):
            mode = "L" if place == number == 0 else "RGB"
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg(10 * place + number, mode=mode)
        for number in range(val):
            files[f"val/images/val_{place}_{number}.JPEG"] = jpeg(100 + 10 * place + number)
            lines.append(f"val_{place}_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files


def write_tree(top, files):
    """Files by name under a folder."""
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def zip_bytes(files, prefix=f"{TINY_IMAGENET.folder}/"):
    """A zip of files by name, ZipInfo or str."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name if isinstance(name, zipfile.ZipInfo) else f"{prefix}{name}", content)
    return target.getvalue()
