"""Compiles the GPU kernels ahead of time: `python -m gphm_kernels.triton.compile [--targets=80,90] [--output=folder]`.

Needs Triton, which brings its own assembler: no GPU, CUDA toolkit or PyTorch. The result is a folder with a cubin for
each kernel and compute capability, PTX of one capability for the GPUs that no cubin fits, and a manifest; it appears
whole or not at all.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from gphm_kernels.triton import binaries
from gphm_kernels.triton.launches import KERNELS, Kernel

_TARGETS = flags.DEFINE_list("targets", [str(t) for t in binaries.TARGETS], "Compute capabilities, such as 80,90.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; the place where the package looks by default.")


class CompileError(RuntimeError):
    """A kernel cannot be compiled or could not run; the message is one line."""


def compile_all(targets: Sequence[int], output: pathlib.Path, kernels: Sequence[str] = tuple(KERNELS)) -> None:
    """Compiles the kernels for the targets, in parallel, and replaces the folder `output` by the result.

    Raises CompileError for an unknown target, a kernel that needs more shared memory than the target has, or one that
    needs scratch memory, which the launcher does not provide.
    """
    unknown = [target for target in targets if target not in binaries.TARGETS]
    if unknown or not targets:
        raise CompileError(f"targets={list(targets)}: choose from {', '.join(map(str, binaries.TARGETS))}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        fresh = pathlib.Path(temporary) / "fresh"
        fresh.mkdir()
        # A fresh process each worker: Triton keeps no promise about forks or threads.
        with concurrent.futures.ProcessPoolExecutor(_cores(), multiprocessing.get_context("spawn")) as pool:
            jobs = [(name, target, fresh) for target in targets for name in kernels]
            done = list(pool.map(_compile, *zip(*jobs, strict=True)))
        binaries.write(fresh, [binary for found, _ in done for binary in found], done[0][1])
        old = pathlib.Path(temporary) / "old"
        if output.exists():
            os.replace(output, old)
        os.replace(fresh, output)


def _compile(name: str, target: int, folder: pathlib.Path) -> tuple[list[binaries.Binary], str]:
    """Compiles one kernel for one target; what was written, and Triton's version."""
    # Line tables and PTX for debuggers would be most of a cubin.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = KERNELS[name]
    function = kernel.load()
    source = ASTSource(
        function, signature=_signature(kernel, function.arg_names), constexprs=kernel.constants, attrs=_aligned(kernel)
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache
        options = {"num_warps": kernel.num_warps, "enable_fp_fusion": True}
        if target == binaries.PTX_TARGET:
            options["ptx_version"] = binaries.PTX_VERSION
        compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    metadata = compiled.metadata
    if metadata.shared > binaries.TARGETS[target]:
        raise CompileError(f"{name} needs {metadata.shared} bytes of shared memory, sm_{target} has "
                           f"{binaries.TARGETS[target]}: choose smaller blocks in launches.py")  # fmt: skip
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise CompileError(f"{name} needs scratch memory on sm_{target}, which the launcher does not provide")
    return _write(name, target, folder, compiled), triton.__version__


def _write(name: str, target: int, folder: pathlib.Path, compiled: Any) -> list[binaries.Binary]:
    """Writes the cubin, and the PTX if it is of the target whose PTX is kept."""
    kernel, metadata, written = KERNELS[name], compiled.metadata, []
    shape = 32 * metadata.num_warps, metadata.shared, len(kernel.pointers), len(kernel.sizes)
    for form in ("cubin", "ptx") if target == binaries.PTX_TARGET else ("cubin",):
        file, code = f"{name}-sm{target}.{form}", compiled.asm[form]
        (folder / file).write_bytes(code.encode() if form == "ptx" else code)
        written.append(binaries.Binary(name, metadata.name, target, form == "ptx", file, *shape))
    return written


def _signature(kernel: Kernel, names: Sequence[str]) -> dict[str, str]:
    types = (*kernel.pointers, *("i32",) * len(kernel.sizes), *("constexpr",) * len(kernel.constants))
    return dict(zip(names, types, strict=True))


def _aligned(kernel: Kernel) -> dict[tuple[int, ...], list[list[str | int]]]:
    """XLA's arrays start at multiples of 16 bytes, and channels are padded to a multiple of 16: rows are as well."""
    positions = [*range(len(kernel.pointers))]
    if "channels" in kernel.sizes:
        positions.append(len(kernel.pointers) + kernel.sizes.index("channels"))
    return {(position,): [["tt.divisibility", 16]] for position in positions}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str]) -> None:
    """Compiles for the targets of the flags."""
    if len(arguments) > 1:
        raise app.UsageError(f"unknown argument {arguments[1]}")
    logging.set_verbosity(logging.INFO)
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else binaries.folder()
    try:
        targets = [int(target) for target in _TARGETS.value]
    except ValueError:
        raise app.UsageError(f"--targets={','.join(_TARGETS.value)}: numbers such as 80,90") from None
    try:
        compile_all(targets, output)
    except CompileError as error:
        logging.error("%s", error)
        raise SystemExit(2) from None
    logging.info("the GPU kernels for %s are in %s", ", ".join(f"sm_{t}" for t in targets), output)


if __name__ == "__main__":
    app.run(main)
