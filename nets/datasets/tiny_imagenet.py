"""Tiny-ImageNet: a tree of small JPEGs, with training images in class folders and annotated validation images."""

from __future__ import annotations

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nets.datasets.archives import list_zip, read_zip_member
from nets.datasets.catalogue import TinySet
from nets.datasets.download import download
from nets.datasets.errors import damage_error, report_damage
from nets.datasets.files import cache_folder, check_regular, first_file, missing_files_error, read_whole, size_error
from nets.datasets.parts import DataPart

WNIDS, ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"
# the largest official image has 13 kB, the largest list half a megabyte
MOST_IMAGE, MOST_TEXT, MOST_ARCHIVE = 2**20, 2**22, 2**29


class ImageTree(ABC):
    """Files by their names below the top folder, and folders with a trailing slash, on disk or in an archive."""

    names: frozenset[str]

    @abstractmethod
    def location(self, name: str) -> str:
        """The name of a file in errors."""

    @abstractmethod
    def read(self, name: str, most: int) -> bytes:
        """The bytes of a file of at most ``most``."""


class Folder(ImageTree):
    """A tree on disk."""

    def __init__(self, top: Path) -> None:
        self.top = top
        patterns = ("train/*/images/*.JPEG", "val/images/*.JPEG", WNIDS, ANNOTATIONS)
        with report_damage(top, "a readable folder"):
            files = (path.relative_to(top).as_posix() for pattern in patterns for path in top.glob(pattern))
            folders = (f"train/{path.name}/" for path in top.glob("train/*") if path.is_dir())
            self.names = frozenset((*files, *folders))

    def location(self, name: str) -> str:
        return str(self.top / name)

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a file of at most ``most``."""
        return read_whole(self.top / name, most)


class Zip(ImageTree):
    """A tree in the official archive, below one folder."""

    def __init__(self, archive: Path, members: zipfile.ZipFile, prefix: str) -> None:
        self.archive, self.members = archive, members
        listed = list_zip(archive, members)
        self.infos = {name.removeprefix(prefix): info for name, info in listed.items() if name.startswith(prefix)}
        parts = (name.split("/") for name in self.infos)
        # archives need not list their folders
        folders = {f"train/{part[1]}/" for part in parts if part[0] == "train" and len(part) > 2}
        self.names = frozenset((*self.infos, *folders))

    def location(self, name: str) -> str:
        return f"{self.archive}, member {name!r}"

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a member of at most ``most``."""
        return read_zip_member(self.archive, self.members, self.infos[name], most)


def find_tiny(name: str, kind: TinySet, root: Path | None) -> Path:
    """The top folder, or the official archive, downloaded if there is no root."""
    base = cache_folder() if root is None else root
    places = [base / kind.folder, base]
    for place in places:
        with report_damage(place, "a readable folder"):
            there = (place / "train").is_dir() or (place / "val").is_dir()
        if there:
            return place
    archive = first_file([base], [kind.archive.name])
    if archive is None and root is not None:
        raise missing_files_error(name, root, ("train/", "val/"), places, kind.archive.name)
    return archive or download(kind.archive, base)


@contextmanager
def open_tree(source: Path, kind: TinySet) -> Iterator[ImageTree]:
    """A context with the tree in a folder or an archive."""
    if source.is_dir():
        yield Folder(source)
        return
    with report_damage(source, "a zip archive"):
        check_regular(source)
        # before the list of members is read, which may need much memory
        if source.stat().st_size > MOST_ARCHIVE:
            raise size_error(source, source.stat().st_size, MOST_ARCHIVE)
        members = zipfile.ZipFile(source)
    with members:
        with report_damage(source, "a zip archive"):
            tree = Zip(source, members, f"{kind.folder}/")
        yield tree


def tiny_part(source: Path, kind: TinySet, *, train: bool) -> DataPart:
    """Images (N, 3, 64, 64) and classes, numbered in the order of wnids.txt, of ``train/`` or of ``val/``."""
    with open_tree(source, kind) as tree:
        wnids = read_wnids(tree, kind)
        names, targets = train_list(tree, wnids) if train else val_list(tree, wnids)
        most = kind.counts[0 if train else 1]
        if len(names) > most:
            raise damage_error(
                tree.location("train/" if train else "val/"), f"{len(names):,} images", f"at most {most:,}"
            )
        values = torch.empty(len(names), 3, kind.side, kind.side, dtype=torch.uint8)
        for place, name in enumerate(names):
            values[place] = decode(tree.read(name, MOST_IMAGE), tree.location(name), kind.side)
    return DataPart(values, torch.tensor(targets), len(wnids))


def read_text(tree: ImageTree, name: str) -> list[str]:
    """The nonempty lines of a text file."""
    if name not in tree.names:
        raise damage_error(tree.location(name), "no such file", "one")
    with report_damage(tree.location(name), "a text in UTF-8"):
        return [line for line in tree.read(name, MOST_TEXT).decode("utf-8").splitlines() if line.strip()]


def read_wnids(tree: ImageTree, kind: TinySet) -> list[str]:
    """The classes: those of wnids.txt, in its order, else the folders of ``train/``, sorted; the two must agree."""
    parts = (name.split("/") for name in tree.names)
    folders = {part[1] for part in parts if part[0] == "train" and len(part) == 3 and part[1] and not part[2]}
    if WNIDS not in tree.names:
        wnids = sorted(folders)
    else:
        wnids = [line.strip() for line in read_text(tree, WNIDS)]
        odd = sorted({*wnids} ^ folders)
        if odd or len({*wnids}) != len(wnids):
            found = f"{odd[0]!r} either there or as a folder of train/, not both" if odd else "a class twice"
            raise damage_error(tree.location(WNIDS), found, "each folder of train/ once")
    if not 1 <= len(wnids) <= kind.classes:
        raise damage_error(tree.location("train/"), f"{len(wnids)} class folders", f"1 to {kind.classes}")
    return wnids


def train_list(tree: ImageTree, wnids: list[str]) -> tuple[list[str], list[int]]:
    """Names of the training images, class by class, and their classes."""
    members: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in tree.names:
        parts = name.split("/")
        if len(parts) == 4 and (parts[0], parts[2]) == ("train", "images") and name.endswith(".JPEG"):
            members[parts[1]].append(name)
    for wnid, names in members.items():
        if not names:
            raise damage_error(tree.location(f"train/{wnid}/images"), "no .JPEG files", "the images of the class")
    names = [name for wnid in wnids for name in sorted(members[wnid])]
    return names, [label for label, wnid in enumerate(wnids) for _ in members[wnid]]


def val_list(tree: ImageTree, wnids: list[str]) -> tuple[list[str], list[int]]:
    """Names of the validation images, in the order of their annotations, and their classes."""
    where, classes = tree.location(ANNOTATIONS), {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(read_text(tree, ANNOTATIONS), start=1):
        file, _, rest = line.partition("\t")
        wnid, name = rest.partition("\t")[0].strip(), f"val/images/{file}"
        if name not in tree.names or not name.endswith(".JPEG"):
            raise damage_error(where, f"{file!r} in line {number}", "names of .JPEG files in val/images")
        if wnid not in classes:
            raise damage_error(where, f"class {wnid!r} in line {number}", "classes of train/")
        if name in labels:
            raise damage_error(where, f"{file!r} again in line {number}", "each image once")
        labels[name] = classes[wnid]
    images = {name for name in tree.names if name.startswith("val/images/") and name.endswith(".JPEG")}
    left = sorted(images - {*labels})
    if left or not labels:
        found = f"no line for {left[0].rsplit('/', 1)[1]!r}" if left else "no lines"
        raise damage_error(where, found, "one for each image in val/images")
    return list(labels), list(labels.values())


def decode(content: bytes, where: str, side: int) -> Tensor:
    """A JPEG as uint8 (3, side, side); grey images have three equal channels."""
    from PIL import Image

    with report_damage(where, f"a JPEG of {side}×{side}"), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        # before decoding: a header may claim any size
        if image.size != (side, side):
            raise damage_error(where, f"an image of {image.size[0]}×{image.size[1]}", f"{side}×{side}")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
