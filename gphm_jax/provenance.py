"""What a picture, a video or an exported head says about itself: what it shows, and what made it.

Pictures and videos carry an XMP packet with IPTC's DigitalSourceType, the vocabulary that C2PA and platforms use to
label synthetic media: PNG in an iTXt chunk, JPEG in APP1, WebP in its XMP chunk, MP4 in a `uuid` box (XMP
specification, part 3). Whatever re-encodes a file drops it; it is a label, not a watermark.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import os
import pathlib
import struct
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.etree import ElementTree

from PIL import Image, UnidentifiedImageError

import gphm_jax
from gphm_jax import files

RENDERED = "trainedAlgorithmicMedia"  # made by a trained model alone
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"  # beside footage
NO_LICENCE = "not stated; the person shown and the makers of the footage have a say"

_CONTENT = {
    RENDERED: "a synthetic rendering of a person by a computed 3D avatar, not a photograph",
    COMPOSITE: "footage beside synthetic renderings of a person by a computed 3D avatar",
}
_TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
for _prefix, _uri in _NAMESPACES.items():
    ElementTree.register_namespace(_prefix, _uri)
_PACKET = b"<?xpacket begin='\xef\xbb\xbf' id='W5M0MpCehiHzreSzNTczkc9d'?>%s<?xpacket end='r'?>"
_VIDEO_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """What goes into a file's metadata."""

    source: str = RENDERED  # a term of IPTC's digital source types
    licence: str = NO_LICENCE
    date: str = dataclasses.field(default_factory=_today)
    generator: str = f"gphm_jax {gphm_jax.__version__}"

    @property
    def content(self) -> str:
        """What is to be seen, in words."""
        return _CONTENT.get(self.source, self.source)

    @property
    def lines(self) -> tuple[str, ...]:
        """One statement a line, for files that hold plain comments."""
        return (
            f"generator: {self.generator}",
            f"date: {self.date}",
            f"licence: {self.licence}",
            f"content: {self.content}",
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The same, named, for files that hold JSON."""
        return {
            "generator": self.generator,
            "date": self.date,
            "licence": self.licence,
            "synthetic": True,
            "digitalSourceType": self.source,
            "content": self.content,
        }

    @property
    def xmp(self) -> bytes:
        """The same as an XMP packet."""
        root = ElementTree.Element(_name("x", "xmpmeta"))
        described = ElementTree.SubElement(
            ElementTree.SubElement(root, _name("rdf", "RDF")),
            _name("rdf", "Description"),
            {
                _name("rdf", "about"): "",
                _name("Iptc4xmpExt", "DigitalSourceType"): _TERMS + self.source,
                _name("xmp", "CreatorTool"): self.generator,
                _name("xmp", "CreateDate"): self.date,
            },
        )
        for name, text in (("description", self.content), ("rights", self.licence)):
            alternatives = ElementTree.SubElement(
                ElementTree.SubElement(described, _name("dc", name)), _name("rdf", "Alt")
            )
            item = ElementTree.SubElement(alternatives, _name("rdf", "li"), {"xml:lang": "x-default"})
            item.text = text
        return _PACKET % ElementTree.tostring(root, encoding="utf-8")


def image_bytes(image: files.Picture, suffix: str, statement: Statement, *, quality: int = 92) -> bytes:
    """The bytes of a marked picture file; `suffix` and `quality` as in `files.encode_image`."""
    return files.encode_image(image, suffix, quality=quality, xmp=statement.xmp)


def save_image(path: str | os.PathLike[str], image: files.Picture, statement: Statement) -> None:
    """Writes a marked picture in the format of the path's suffix: floats in [0, 1] or bytes."""
    with files.atomic_path(path) as partial:
        partial.write_bytes(image_bytes(image, pathlib.Path(path).suffix, statement))


def mark_video(path: str | os.PathLike[str], statement: Statement) -> None:
    """Marks a finished MP4 file: a box at its end, which players pass over."""
    packet = statement.xmp
    with open(path, "ab") as file:
        file.write(struct.pack(">I4s", 24 + len(packet), b"uuid") + _VIDEO_BOX + packet)


def read_marks(path: str | os.PathLike[str]) -> Statement | None:
    """What a picture or an MP4 file states of itself; None where it carries no DigitalSourceType."""
    with open(path, "rb") as file:
        packet = _video_packet(file) if file.read(8)[4:] == b"ftyp" else _image_packet(file)
    try:
        root = ElementTree.fromstring(packet.strip(b"\0 "))
    except ElementTree.ParseError:
        return None
    found = {
        name: _text(root, _name(space, tag))
        for name, space, tag in (
            ("source", "Iptc4xmpExt", "DigitalSourceType"),
            ("licence", "dc", "rights"),
            ("date", "xmp", "CreateDate"),
            ("generator", "xmp", "CreatorTool"),
        )
    }
    return Statement(**found | {"source": found["source"].rpartition("/")[2]}) if found["source"] else None


def _name(space: str, tag: str) -> str:
    return f"{{{_NAMESPACES[space]}}}{tag}"


def _text(root: ElementTree.Element, name: str) -> str:
    """A property's value, which XMP writes as an attribute or as an element; empty where there is none."""
    for element in root.iter():
        if name in element.attrib:
            return element.attrib[name]
        if element.tag == name:
            return "".join(element.itertext()).strip()
    return ""


def _image_packet(file: BinaryIO) -> bytes:
    file.seek(0)
    try:
        with Image.open(io.BytesIO(file.read())) as image:
            packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", b"")
    except UnidentifiedImageError:
        return b""
    return packet.encode() if isinstance(packet, str) else packet


def _video_packet(file: BinaryIO) -> bytes:
    for kind, size in _boxes(file):
        if kind == b"uuid" and file.read(16) == _VIDEO_BOX:
            return file.read(size - 16)
    return b""


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and size of the content of each box of an MP4 file's top level; the file stands at its content."""
    end, start = file.seek(0, os.SEEK_END), 0
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        if size == 1:  # the size follows, in 64 bits
            size = struct.unpack(">Q", file.read(8))[0]
        elif size == 0:
            size = end - start
        if size < 8:
            return
        content = file.tell()
        yield kind, start + size - content
        start += size
