"""Packed datasets: the files of the plain layout as records of ArrayRecord shards, all else in an index beside them.

    PACKED/packed.json     version, date, shards (records, bytes, SHA-256), the index's SHA-256, dataset.json's content
    PACKED/index.npz       names, cameras, poses, landmarks, sizes, and the record of every picture
    PACKED/shard-00000-of-00002.array_record, ...

A record is one file, so that a batch reads what it shows and nothing more; records are numbered through all shards.
Face, non-face and expression images have a second record at the size that networks read, resized when packed.
Encodings of a record, one byte each in the index's `encodings`:
`FILE` the file as it was, decoded by Pillow; `FAST` the same, but OpenCV decodes it, twice as fast: when packed it gave
the same pixels; `PIXELS` a mask or a resized image: height, width and channels (little-endian uint16; no channels:
grey), then the pixels row by row, zlib-compressed, which decode three times faster than PNG.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from gphm_jax.data import files, images, layout
from gphm_jax.data.files import View
from gphm_jax.data.layout import Dataset, Frame
from gphm_jax.errors import InputError

VERSION = 2
_READ = (1, 2)  # 1: without `recorded`, all of each picture
MANIFEST, INDEX = "packed.json", "index.npz"
FILE, FAST, PIXELS = range(3)
_PIXELS_HEADER = struct.Struct("<HHH")
_MANIFEST_KINDS = {
    "shards": list,
    "index_sha256": str,
    "face_size": int,
    "nonface_size": int,
    "dataset": dict,
}
_SHARD_KEYS = {"name", "records", "bytes"}
_AGAIN = "copy it again, or pack the dataset again"
INDEX_ARRAYS = (
    "identities", "frame_identity", "frame_name", "rotation", "translation", "scale", "landmarks", "params",
    "view_counts", "view_name", "view_size", "world_to_camera", "intrinsics", "recorded", "facing",
    "shows_face",
    "image", "mask", "face", "face_small", "nonface", "nonface_small",
    "synthesized_counts", "synthesized", "synthesized_small", "encodings",
)  # fmt: skip


class Shards:
    """The records of all shards under one numbering; shards are opened when first read.

    Safe to share between threads; a copy in another process opens the files anew.
    """

    def __init__(
        self, paths: Sequence[Path], counts: Sequence[int], encodings: UInt8[np.ndarray, "n"]
    ) -> None:
        source = import_array_record().array_record_data_source
        self._paths = tuple(paths)
        self._ends = np.cumsum(counts)
        self._encodings = encodings
        # With the ranges given it opens no shard to count its records.
        ranges = [f"{path}[0:{count}]" for path, count in zip(paths, counts, strict=True)]
        self._source = source.ArrayRecordDataSource(ranges)

    def encoding(self, number: int) -> int:
        """How record `number` is encoded."""
        return int(self._encodings[number])

    def read(self, number: int) -> bytes:
        """The content of record `number`; `InputError` where its shard is damaged or gone."""
        try:
            return self._source[number]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise self._unreadable(number, error) from error

    def name(self, number: int) -> str:
        """Where record `number` lies."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return f"{self._paths[shard]} (record {number})"

    def _unreadable(self, number: int, error: Exception) -> InputError:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        return InputError(f"cannot read {self.name(number)}: {reason}: {_AGAIN}")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One file of a packed dataset (an `images.Stored`), and its record at another size if there is one."""

    shards: Shards
    number: int
    small: int = -1
    small_size: int = 0

    def __str__(self) -> str:
        return self.shards.name(self.number)

    def read_bytes(self) -> bytes:
        """The record's content."""
        return self.shards.read(self.number)

    def pixels(self, mode: str) -> np.ndarray:
        """The picture as Pillow decodes it: "RGB" [h w 3], or "L" [h w]."""
        content, encoding = self.read_bytes(), self.shards.encoding(self.number)
        if encoding == PIXELS:
            return decode_pixels(content)
        if encoding == FAST and mode == "RGB" and (decoded := decode_fast(content)) is not None:
            return decoded
        return images.decode(io.BytesIO(content), mode, name=str(self))

    def square(self, size: int) -> np.ndarray | None:
        """The RGB picture in a white square of `size` pixels, where that is stored."""
        if self.small < 0 or size != self.small_size:
            return None
        return decode_pixels(self.shards.read(self.small))


def encode_pixels(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """A `PIXELS` record."""
    height, width, channels = (*pixels.shape, 0)[:3]
    return _PIXELS_HEADER.pack(height, width, channels) + zlib.compress(pixels.tobytes(), 9)


def decode_pixels(content: bytes) -> UInt8[np.ndarray, "h w *c"]:
    """The pixels in a `PIXELS` record."""
    height, width, channels = _PIXELS_HEADER.unpack_from(content)
    rows = zlib.decompress(memoryview(content)[_PIXELS_HEADER.size :])
    return np.frombuffer(rows, np.uint8).reshape((height, width, channels) if channels else (height, width))


def decode_fast(content: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """An image file's RGB by OpenCV, or None: it reports no damage and turns some formats into other pixels."""
    # Pillow leaves a picture as the sensor saw it; OpenCV would turn it as its EXIF tag says.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return None if decoded is None else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded)


def is_packed(root: Path) -> bool:
    """Whether a folder holds a packed dataset."""
    return (root / MANIFEST).is_file()


def read_dataset(root: Path) -> Dataset:
    """The dataset packed in a folder, as `layout.open_dataset` gives the plain one; opens no shard.

    Checks the version, the index's checksum and every shard's size. Damage inside a shard is found when it is read.
    """
    manifest = _read_manifest(root)
    index = _read_index(root, manifest)
    listed = manifest["shards"]
    paths = [root / shard["name"] for shard in listed]
    for path, shard in zip(paths, listed, strict=True):
        if not path.is_file():
            raise InputError(f"missing shard {path}: {_AGAIN}")
        if (size := path.stat().st_size) != shard["bytes"]:
            raise InputError(f"{path} has {size} bytes and {MANIFEST} says {shard['bytes']}: {_AGAIN}")
    shards = Shards(paths, [shard["records"] for shard in listed], index["encodings"])
    identities = tuple(index["identities"].tolist())
    frames = _frames(index, identities, shards, (manifest["face_size"], manifest["nonface_size"]))
    metadata = manifest["dataset"]
    return Dataset(
        path=root,
        identities=identities,
        frames=frames,
        landmark_count=index["landmarks"].shape[1],
        image_size=frames[0].views[0].size,
        white_background=metadata.get("background") == "white",
        metadata=metadata,
        **layout.held_out(root, metadata, identities, frames),
    )


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): {_AGAIN}") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version not in _READ:
        raise InputError(
            f"{path} is of version {version} and this program reads 1 to {VERSION}: pack the dataset again"
        )
    for key, kind in _MANIFEST_KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise InputError(f"{path} has no valid '{key}': {_AGAIN}")
    if not all(isinstance(shard, dict) and shard.keys() >= _SHARD_KEYS for shard in manifest["shards"]):
        raise InputError(f"{path} has no valid 'shards': {_AGAIN}")
    return manifest


def _read_index(root: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    path = root / INDEX
    if not path.is_file():
        raise InputError(f"missing index {path}: {_AGAIN}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["index_sha256"]:
        raise InputError(
            f"{path} is damaged or of another packing (its SHA-256 is not {MANIFEST}'s): {_AGAIN}"
        )
    if manifest["version"] == 1:
        index = files.read_npz(path, tuple(name for name in INDEX_ARRAYS if name != "recorded"))
        corners = np.zeros_like(index["view_size"]), index["view_size"][:, ::-1]
        return index | {"recorded": np.concatenate(corners, axis=1).astype(np.float32)}
    return files.read_npz(path, INDEX_ARRAYS)


def _frames(
    index: dict[str, np.ndarray], identities: Sequence[str], shards: Shards, sizes: tuple[int, int]
) -> tuple[Frame, ...]:
    """Every frame; `sizes` are those of the second records of face (and expression) and of non-face images."""

    def records(kind: str, small_size: int = 0) -> list[Record | None]:
        small = index[f"{kind}_small"] if small_size else np.full(len(index[kind]), -1)
        pairs = zip(index[kind].tolist(), small.tolist(), strict=True)
        return [Record(shards, n, other, small_size) if n >= 0 else None for n, other in pairs]

    sources = (records("image"), records("mask"), records("face", sizes[0]), records("nonface", sizes[1]))
    views = [
        View(name=name, image=image, mask=mask, face=face, nonface=nonface, size=(height, width))
        for name, (height, width), image, mask, face, nonface in zip(
            index["view_name"].tolist(), index["view_size"].tolist(), *sources, strict=True
        )
    ]
    synthesized = [record for record in records("synthesized", sizes[0]) if record is not None]
    view_ends = np.concatenate([[0], np.cumsum(index["view_counts"])]).tolist()
    synthesized_ends = np.concatenate([[0], np.cumsum(index["synthesized_counts"])]).tolist()
    frames = []
    for row, identity_row in enumerate(index["frame_identity"].tolist()):
        first, last = view_ends[row], view_ends[row + 1]
        frames.append(
            Frame(
                row=row,
                identity_row=identity_row,
                identity=identities[identity_row],
                name=str(index["frame_name"][row]),
                views=tuple(views[first:last]),
                world_to_camera=index["world_to_camera"][first:last],
                intrinsics=index["intrinsics"][first:last],
                recorded=index["recorded"][first:last],
                rotation=index["rotation"][row],
                translation=index["translation"][row],
                scale=float(index["scale"][row]),
                landmarks=index["landmarks"][row],
                facing=index["facing"][first:last],
                shows_face=index["shows_face"][first:last],
                synthesized=tuple(synthesized[synthesized_ends[row] : synthesized_ends[row + 1]]),
                params=Record(shards, int(index["params"][row])),
            )
        )
    return tuple(frames)


def import_array_record() -> Any:
    """The optional package that reads and writes shards, with its data source and its module of readers."""
    try:
        from array_record import python
        from array_record.python import array_record_data_source, array_record_module  # noqa: F401
    except ImportError as error:
        raise InputError(
            "packed datasets need ArrayRecord and Grain: pip install 'gphm_jax[packed]'"
        ) from error
    return python
