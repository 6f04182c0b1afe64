"""GPU kernels as files: compiled without a GPU, listed, and launched through a driver that only records."""

import ctypes
import functools
import json
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gphm_kernels import backends, marching_tetrahedra
from gphm_kernels.backends import build, native, notices, triton
from gphm_kernels.triton import binaries, launches


@pytest.fixture
def driver(tmp_path):
    """The fake driver."""
    path = tmp_path / "libcuda.so.1"
    source = pathlib.Path(__file__).parent / "fake_cuda.c"
    subprocess.run([*build._find_compiler(), "-x", "c", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def library(tmp_path):
    """The native library under another name: a launcher of this test's own, with no driver open."""
    assert native.available(), native.reason()
    return ctypes.CDLL(shutil.copy(build.build(), tmp_path / "kernels.so"))


def number(driver, name: str) -> int:
    return ctypes.c_int.in_dll(driver, name).value


def add_kernel(library, capability: int, shared: int = 1024, kernel: str = "blend", ptx: bool = False) -> None:
    code = f"{'PTX' if ptx else 'code'} for {capability}".encode()
    arguments = kernel.encode(), b"symbol", capability, ptx, code, ctypes.c_int64(len(code)), 256, shared
    triton._call(library.gphm_c_cuda_add, *arguments)


def run_kernel(library, stream: int, grid=(5, 2), kernel: str = "blend") -> None:
    pointers, sizes = (ctypes.c_void_p * 3)(0x1000, 0x2000, 0x3000), (ctypes.c_int32 * 2)(640, -480)
    counted = pointers, 3, sizes, 2
    sides = (ctypes.c_int64(side) for side in grid)
    triton._call(library.gphm_c_cuda_launch, ctypes.c_void_p(stream), kernel.encode(), *counted, *sides)


@pytest.fixture
def opened(driver, library):
    triton.load(library, driver._name)
    ctypes.c_int.in_dll(driver, "fake_pointers").value = 3
    ctypes.c_int.in_dll(driver, "fake_sizes").value = 2
    return library


def test_launch_passes_parameters_grid_and_stream(driver, opened):
    assert triton.capabilities(opened) == [89, 103]
    add_kernel(opened, 80, shared=65536)
    run_kernel(opened, stream=101)
    assert list((ctypes.c_uint * 7).in_dll(driver, "fake_shape")) == [5, 2, 1, 256, 1, 1, 65536]
    assert list((ctypes.c_void_p * 3).in_dll(driver, "fake_seen_pointers")) == [0x1000, 0x2000, 0x3000]
    assert list((ctypes.c_int32 * 2).in_dll(driver, "fake_seen_sizes")) == [640, -480]
    assert ctypes.c_void_p.in_dll(driver, "fake_stream").value == 101
    assert (ctypes.c_char * 64).in_dll(driver, "fake_function").value == b"symbol"
    assert number(driver, "fake_dynamic_shared") == 65536  # more than 48 KiB has to be asked for
    assert number(driver, "fake_pushed") == number(driver, "fake_popped") == 1


def test_a_kernel_is_loaded_once_a_context(driver, opened):
    add_kernel(opened, 80)
    add_kernel(opened, 103)
    for stream in (101, 102, 201, 101, 202):
        run_kernel(opened, stream)
    assert number(driver, "fake_launches") == 5 and number(driver, "fake_loads") == 2


@pytest.mark.parametrize(
    ("compiled", "ptx", "device", "chosen"),
    [
        ((80, 86, 90), (), 89, "code for 86"),
        ((80, 86, 89), (), 86, "code for 86"),
        ((80, 90), (), 90, "code for 90"),
        ((90, 100), (), 103, None),
        ((89,), (), 86, None),
        ((90, 100), (80, 89), 103, "PTX for 89"),
        ((90, 100), (80, 89), 86, "PTX for 80"),
        ((80, 100), (89,), 89, "code for 80"),  # compiled ahead, even if for an earlier one
        ((100,), (89,), 100, "code for 100"),
        ((90,), (89,), 80, None),
    ],
)
def test_code_is_chosen_by_compute_capability(driver, opened, compiled, ptx, device, chosen):
    ctypes.c_int.in_dll(driver, "fake_capability").value = device
    for capability in ptx:
        add_kernel(opened, capability, ptx=True)
    for capability in compiled:
        add_kernel(opened, capability)
    fits = [binaries.runs_on(target, device, ptx=False) for target in compiled]
    fits += [binaries.runs_on(target, device, ptx=True) for target in ptx]
    assert any(fits) == (chosen is not None)
    if chosen is None:
        with pytest.raises(RuntimeError, match=rf"not compiled for compute capability {device // 10}\.{device % 10}"):
            run_kernel(opened, 101)
        assert not number(driver, "fake_launches")
    else:
        run_kernel(opened, 101)
        assert (ctypes.c_char * 64).in_dll(driver, "fake_image").value == chosen.encode()  # and a zero ends it
    assert number(driver, "fake_pushed") == number(driver, "fake_popped") == 1


def test_failures_are_one_line(driver, opened):
    with pytest.raises(RuntimeError, match="there is no kernel blend"):
        run_kernel(opened, 101)
    add_kernel(opened, 80)
    with pytest.raises(RuntimeError, match="grid of 5 by 65536 is out of range"):
        run_kernel(opened, 101, grid=(5, 65536))
    ctypes.c_int.in_dll(driver, "fake_launch_result").value = 700
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel failed: an illegal memory access was encountered \(700\)"):
        run_kernel(opened, 101)


def test_a_driver_too_old_for_the_ptx_says_so_in_one_line(driver, opened):
    add_kernel(opened, 80, ptx=True)
    ctypes.c_int.in_dll(driver, "fake_load_result").value = 222
    with pytest.raises(RuntimeError, match="compilation of blend for compute capability 8.9 failed: .*PTX") as error:
        run_kernel(opened, 101)
    assert "update the NVIDIA driver, or use backend='xla'" in str(error.value) and "\n" not in str(error.value)


def test_an_empty_grid_launches_nothing(driver, opened):
    run_kernel(opened, 101, grid=(0, 2))
    assert not number(driver, "fake_launches")


def test_without_a_driver_the_reason_is_one_line(library, tmp_path):
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        triton.load(library, str(tmp_path / "none.so"))
    with pytest.raises(RuntimeError, match="driver is not open"):
        run_kernel(library, 101)
    with pytest.raises(RuntimeError, match="driver is not open"):
        triton.capabilities(library)


def assemble(source: pathlib.Path, target: str) -> None:
    """What the driver of a later GPU does with PTX."""
    from triton import knobs

    arguments = "--gpu-name", target, str(source), "--output-file", os.devnull
    subprocess.run([knobs.nvidia.ptxas_blackwell.path, *arguments], check=True)


def test_kernels_compile_without_a_gpu(tmp_path):
    pytest.importorskip("triton", reason="Triton has no packages for this platform")
    from gphm_kernels.triton import compile as compiler

    names = ("crowded_bwd_16", "rasterize_fwd", "tetrahedra_place")
    compiler.compile_all([86, binaries.PTX_TARGET], tmp_path / "gpu", names)
    compiled = binaries.read(tmp_path / "gpu")
    forms = [(86, False), (binaries.PTX_TARGET, False), (binaries.PTX_TARGET, True)]
    wanted = sorted((name, *form) for name in names for form in forms)
    assert sorted((b.kernel, b.target, b.ptx) for b in compiled) == wanted
    for binary in compiled:
        image = (tmp_path / "gpu" / binary.file).read_bytes()
        assert binary.function.encode() in image
        if binary.ptx:
            assert b".version 8.0" in image and f".target sm_{binary.target}".encode() in image and b"\0" not in image
            assemble(tmp_path / "gpu" / binary.file, "sm_103")
        else:
            assert image[:4] == b"\x7fELF"
        assert binary.threads == 32 * launches.KERNELS[binary.kernel].num_warps
        assert 0 <= binary.shared <= binaries.TARGETS[binary.target]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu"]  # no remains of the work

    manifest = tmp_path / "gpu" / binaries.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sources": "others"}))
    with pytest.raises(binaries.ManifestError, match="other sources"):
        binaries.read(tmp_path / "gpu")


def test_missing_kernels_and_unknown_targets_say_what_to_do(tmp_path):
    with pytest.raises(binaries.ManifestError, match=binaries.COMMAND):
        binaries.read(tmp_path)
    from gphm_kernels.triton import compile as compiler

    with pytest.raises(compiler.CompileError, match="choose from 80, 86"):
        compiler.compile_all([70], tmp_path / "gpu")


@pytest.fixture
def nothing_compiled(monkeypatch, tmp_path):
    """No GPU kernels, on a machine with a GPU, too; and nothing remembered from earlier calls."""
    monkeypatch.setattr(binaries, "folder", lambda: tmp_path)
    for module, name in ((triton, "reason"), (backends, "_load")):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    notices.warn_once.cache_clear()


def test_a_backend_that_cannot_run_says_so_in_one_line(nothing_compiled):
    with pytest.raises(ValueError, match=f"backend='triton' cannot run here: .*{binaries.COMMAND}") as error:
        backends.check("triton", jnp.float32)
    assert "\n" not in str(error.value)


def test_auto_without_compiled_kernels_warns_once_and_on_cuda_alone(nothing_compiled, caplog):
    sdf = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64)), jnp.float32)

    def lower(platform: str, backend: str, resolution: tuple[int, int, int]) -> str:
        def extract(sdf):
            return marching_tetrahedra(sdf, resolution, 50, 90, backend=backend)

        caplog.clear()
        jax.jit(extract).trace(sdf).lower(lowering_platforms=(platform,))
        return caplog.text

    assert not lower("cuda", "xla", (3, 3, 3)) and not lower("cpu", "auto", (3, 3, 3))
    text = lower("cuda", "auto", (3, 3, 3))
    assert text.count("\n") == 1 and "WARNING" in text and binaries.COMMAND in text and "wheels" in text
    assert not lower("cuda", "auto", (7, 1, 3))


def test_only_what_would_be_a_kernel_carries_the_warning(nothing_compiled):
    def program(name: str, *arrays, **options) -> str:
        return str(jax.make_jaxpr(functools.partial(backends.dispatch(name, "auto", jnp.float32), **options))(*arrays))

    assert "gphm_notice" in program("marching_tetrahedra", jnp.zeros((1, 2, 2, 2)), max_vertices=9, max_faces=9)
    mesh = jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]])
    assert "gphm_notice" in program("rasterize_fwd", *mesh, width=4, height=4)
    assert "gphm_notice" not in program("antialias_fwd", jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 4)), *mesh)


def test_carrying_a_warning_changes_nothing():
    affine = notices.on_cuda(lambda x, y, *, factor: factor * x + y, "slow")
    x, y = jnp.arange(3.0), jnp.ones(3)
    mesh = jax.make_mesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec("data")}
    divided = functools.partial(jax.shard_map, mesh=mesh, **specs)
    for transform in (lambda function: function, jax.jit, jax.vmap, divided):
        np.testing.assert_array_equal(transform(functools.partial(affine, factor=2))(x, y), [1, 3, 5])
