"""The idx format of MNIST and Fashion-MNIST: a big-endian header, then unsigned bytes; plain or gz."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from nets.datasets.catalogue import IDX_NAMES, IdxSet
from nets.datasets.download import download
from nets.datasets.errors import damage_error, report_damage
from nets.datasets.files import cache_folder, check_regular, first_file, missing_files_error
from nets.datasets.parts import DataPart

# two zero bytes, 08 for unsigned bytes, the number of dimensions
IMAGES, LABELS = 0x0803, 0x0801


def find_idx(name: str, kind: IdxSet, root: Path | None) -> dict[str, Path]:
    """The four files by name, under ``root`` or in the cache, to which missing ones are downloaded."""
    base = cache_folder() if root is None else root
    places = [*(base / folder for folder in kind.folders), base]
    found = {each: first_file(places, (each, f"{each}.gz")) for each in IDX_NAMES}
    absent = [each for each, path in found.items() if path is None]
    if absent and root is not None:
        raise missing_files_error(name, root, (f"{each}(.gz)" for each in absent), places)
    for each, remote in zip(IDX_NAMES, kind.remotes, strict=True):
        if found[each] is None:
            found[each] = download(remote, places[0])
    return cast("dict[str, Path]", found)


def idx_part(files: dict[str, Path], kind: IdxSet, *, train: bool) -> DataPart:
    """Images (N, 1, side, side) and labels of one part."""
    images_path, labels_path = (files[each] for each in (IDX_NAMES[:2] if train else IDX_NAMES[2:]))
    most = kind.counts[0 if train else 1]
    labels = read_idx(labels_path, LABELS, (), most)
    if int(labels.max()) >= kind.classes:
        raise damage_error(labels_path, f"label {int(labels.max())}", f"labels in [0, {kind.classes})")
    images = read_idx(images_path, IMAGES, (kind.side, kind.side), most)
    if len(images) != len(labels):
        raise damage_error(
            images_path, f"{len(images)} images", f"as many as the {len(labels)} labels in {labels_path}"
        )
    return DataPart(images[:, None], labels.long(), kind.classes)


def read_idx(path: Path, magic: int, shape: tuple[int, ...], most: int) -> Tensor:
    """An idx file as uint8 (N, *shape), 1 ≤ N ≤ ``most``; raise for any other content or trailing bytes."""
    with report_damage(path, "an idx file of bytes, plain or gz"):
        check_regular(path)
        # gz by its suffix, as gunzip does; GzipFile verifies the checksum at the end of the stream
        stream = cast("BinaryIO", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
        with stream:
            count = read_header(stream, path, magic, shape, most)
            promised = count * math.prod(shape)
            content = stream.read(promised + 1)
    if len(content) != promised:
        found = f"{len(content):,} bytes" if len(content) < promised else "more bytes than that"
        raise damage_error(path, f"{found} after the header", f"the {promised:,} of the header")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(count, *shape)


def read_header(stream: BinaryIO, path: Path, magic: int, shape: tuple[int, ...], most: int) -> int:
    """N; raise unless the header has this magic number, N ≤ ``most`` and these further dimensions."""
    length = 4 * (2 + len(shape))
    header = stream.read(length)
    if len(header) != length:
        raise damage_error(path, f"{len(header)} bytes", f"an idx header of {length}")
    found, count, *sides = struct.unpack(f">{length // 4}I", header)
    if found != magic:
        raise damage_error(
            path, f"magic number 0x{found:08x}", f"0x{magic:08x}, unsigned bytes in {1 + len(shape)} dimensions"
        )
    if tuple(sides) != shape:
        raise damage_error(path, f"images of {'×'.join(map(str, sides))}", "×".join(map(str, shape)))
    if not 1 <= count <= most:
        raise damage_error(path, f"a count of {count:,}", f"1 to {most:,}")
    return count
