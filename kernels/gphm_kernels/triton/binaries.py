"""The compiled GPU kernels on disk: where they lie, which sources they belong to, and the manifest that lists them."""

import hashlib
import json
import pathlib
from typing import NamedTuple

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Compute capability (10 major + minor) -> the shared memory that one program can have, in bytes (CUDA C++ Programming
# Guide, table of technical specifications).
TARGETS = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
# The target whose PTX is kept as well: the driver compiles it for GPUs that no cubin fits. Code for 9.0 and later would
# be of one architecture alone, and of the others this one has the least shared memory.
PTX_TARGET = 89
PTX_VERSION = 80  # CUDA 12.0's, whose driver JAX needs: with Triton's own choice, the newest, only new drivers would do
MANIFEST = "manifest.json"
COMMAND = "make gpu-kernels"


class Binary(NamedTuple):
    """One kernel, compiled for one compute capability."""

    kernel: str  # a key of `launches.KERNELS`
    function: str  # its symbol in the file
    target: int
    ptx: bool  # text that the driver compiles further; else a cubin
    file: str
    threads: int
    shared: int  # bytes, given at the launch
    pointers: int  # parameters: pointers, int32 sizes, and two pointers of Triton's that are null
    sizes: int


def runs_on(target: int, capability: int, *, ptx: bool) -> bool:
    """Whether code for one compute capability runs on another; as cuda_launch.cc chooses."""
    if ptx:
        return target <= capability
    return target == capability or (target // 10 == 8 == capability // 10 and target < capability)


class ManifestError(RuntimeError):
    """The compiled kernels are missing or unfit; the message is one line."""


def fingerprint() -> str:
    """A hash of the sources that decide what the compiled kernels do and how they are called."""
    digest = hashlib.sha256()
    sources = _PACKAGE / "triton"
    names = ("launches.py", "compile.py", "binaries.py")
    for path in (*sorted((sources / "kernels").glob("*.py")), *(sources / name for name in names)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folder() -> pathlib.Path:
    """Where the compiled kernels lie: within an installed package, or beside it in a checkout."""
    packed = _PACKAGE / "build" / "gpu"
    return packed if packed.is_dir() else _PACKAGE.parent / "build" / "gpu"


def write(destination: pathlib.Path, binaries: list[Binary], triton: str) -> None:
    """Writes the manifest, which is what makes a folder of binaries complete."""
    content = {"triton": triton, "sources": fingerprint(), "kernels": [binary._asdict() for binary in binaries]}
    (destination / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read(source: pathlib.Path) -> list[Binary]:
    """The binaries that a folder's manifest lists; ManifestError if there are none or they are of other sources."""
    try:
        content = json.loads((source / MANIFEST).read_text())
    except FileNotFoundError:
        raise ManifestError(
            f"no compiled GPU kernels are in {source}; `{COMMAND}` in a checkout makes them, and wheels built after it "
            "carry them"
        ) from None
    if content["sources"] != fingerprint():
        raise ManifestError(f"the GPU kernels in {source} were compiled from other sources; run `{COMMAND}` again")
    return [Binary(**entry) for entry in content["kernels"]]
