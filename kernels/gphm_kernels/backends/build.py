"""Builds the CPU library of the kernels: `python -m gphm_kernels.backends.build`, and by itself at first use.

The file name carries a hash of the sources, the flags, $CXX where it is set, the version of JAX's FFI headers and the
architecture, so a change of any of them leads to a new build and never to a stale library. Parallel processes may build
at once: a lock lets one of them work, and a finished library appears by an atomic rename.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import jax
from absl import logging

_OPS = (
    "projection",
    "splat_bins",
    "splat_fwd",
    "splat_bwd",
    "rasterize",
    "interpolate",
    "antialias",
    "marching_tetrahedra",
    "point_mlp",
)
_ONCE = ("cpu_handlers", "mesh_handlers", "cuda_launch", "memory")  # the boundary and its kin: for any machine
_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wno-psabi")
# A sum may use fused multiply-adds; errno and trapping exceptions, which nothing reads, would keep square roots and
# comparisons out of vectors. NaN and infinity keep their meaning (no -ffast-math): bad inputs are caught by them.
_MATH_FLAGS = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_V3 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2")
_V4 = (*_V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
# Namespace, floats in a vector register, compiler flags.
_X86_64 = (("base", 4, ("-march=x86-64",)), ("v3", 8, _V3), ("v4", 16, _V4))
_GENERIC = (("base", 4, ()),)


class BuildError(RuntimeError):
    """The library could not be built; the message is one line that names the log, if there is one."""


def build(*, retry: bool = False) -> pathlib.Path:
    """Builds the library unless it exists, and returns its path.

    A build that failed is not tried again with the same sources and compiler unless `retry`.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    sources = _source_folder()
    name = f"libgphm_kernels-{_fingerprint(sources, _chosen_compiler())}"
    for folder in _output_folders(sources):
        if (folder / f"{name}.so").is_file():
            return folder / f"{name}.so"
    folder = _writable_folder(sources)
    library, log = folder / f"{name}.so", folder / f"{name}.log"
    compiler = _find_compiler()
    with _locked(folder):
        if library.is_file():  # another process was faster
            return library
        failed = folder / f"{name}.failed"
        if not retry and failed.is_file() and failed.read_text() == _describe(compiler):
            raise BuildError(
                f"the CPU kernels could not be compiled before (log: {log}); "
                "run `python -m gphm_kernels.backends.build` to try again"
            )
        try:
            _compile(compiler, sources, library, log)
        except BuildError:
            failed.write_text(_describe(compiler))
            raise
        failed.unlink(missing_ok=True)
    return library


def packed_name() -> str:
    """The file name by which an installed package finds a library that came with it: $CXX was the packer's affair."""
    return f"libgphm_kernels-{_fingerprint(_source_folder(), '')}.so"


def _source_folder() -> pathlib.Path:
    package = pathlib.Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):  # installed, or a checkout
        if (folder / f"{_ONCE[0]}.cc").is_file():
            return folder
    raise BuildError(f"the kernels' C++ sources are missing beside {package}")


def _output_folders(sources: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    cache = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path("~").expanduser() / ".cache")
    return sources.parent / "build", pathlib.Path(cache) / "gphm_kernels"


def _writable_folder(sources: pathlib.Path) -> pathlib.Path:
    for folder in _output_folders(sources):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    raise BuildError(f"neither {' nor '.join(map(str, _output_folders(sources)))} can be written to")


def _instruction_sets() -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    return _X86_64 if platform.machine().lower() in ("x86_64", "amd64") else _GENERIC


def _fingerprint(sources: pathlib.Path, compiler: str) -> str:
    header = (pathlib.Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
    version = re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", header)
    digest = hashlib.sha256()
    digest.update(
        repr(
            (_FLAGS, _MATH_FLAGS, _instruction_sets(), version, platform.system(), platform.machine())
        ).encode()
    )
    digest.update(compiler.encode())
    for file in sorted(sources.iterdir()):
        if file.suffix in (".cc", ".h"):
            digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _chosen_compiler() -> str:
    return os.environ.get("CXX", "").strip()


def _find_compiler() -> tuple[str, ...]:
    """The command of the first compiler found: $CXX, which may carry options, g++, clang++, c++."""
    if chosen := _chosen_compiler():
        command = tuple(shlex.split(chosen))
        if not shutil.which(command[0]):
            raise BuildError(f"the compiler CXX={chosen} was not found; unset CXX or name one that exists")
        return command
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return (name,)
    raise BuildError(
        "no C++ compiler was found for the CPU kernels (Debian: apt-get install g++, or set CXX)"
    )


def _describe(compiler: tuple[str, ...]) -> str:
    result = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return f"{shlex.join(compiler)}\n{result.stdout}"


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock; does without where the file system has none, since renames are atomic anyway."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with open(folder / ".lock", "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(
    compiler: tuple[str, ...], sources: pathlib.Path, library: pathlib.Path, log: pathlib.Path
) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".objects-") as temporary:
        objects = pathlib.Path(temporary)
        linked = [objects / f"{name}.o" for name in _ONCE]
        commands = [
            # The FFI headers are taken as a system's: their warnings are not this project's.
            [*compiler, *_FLAGS, "-isystem", str(jax.ffi.include_dir()),
             "-c", str(sources / f"{target.stem}.cc"), "-o", str(target)]
            for target in linked
        ]  # fmt: skip
        # Baseline objects come first: should two sources emit the same inline function, the linker keeps the first,
        # and that one must run on every machine.
        for isa, lanes, flags in _instruction_sets():
            for op in _OPS:
                target = objects / f"{op}-{isa}.o"
                linked.append(target)
                commands.append([*compiler, *_FLAGS, *_MATH_FLAGS, *flags, f"-DGPHM_ISA={isa}", f"-DGPHM_LANES={lanes}",
                                 "-c", str(sources / f"{op}.cc"), "-o", str(target)])  # fmt: skip
        run = functools.partial(
            subprocess.run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        with concurrent.futures.ThreadPoolExecutor(_cores()) as pool:
            results = list(pool.map(run, commands))
        if not any(result.returncode for result in results):
            shared = objects / library.name
            results.append(run([*compiler, *_FLAGS, "-shared", *map(str, linked), "-ldl", "-o", str(shared)]))
        log.write_text("".join(f"$ {shlex.join(result.args)}\n{result.stdout}" for result in results))
        if any(result.returncode for result in results):
            raise BuildError(
                f"the CPU kernels could not be compiled with {shlex.join(compiler)} (log: {log})"
            )
        os.replace(shared, library)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Builds the library and names it; a failure is a warning, since the portable backend serves without it."""
    logging.set_verbosity(logging.INFO)
    try:
        logging.info("the CPU kernels are at %s", build(retry=True))
    except BuildError as error:
        logging.warning("%s; the portable backend serves instead", error)


if __name__ == "__main__":
    main()
