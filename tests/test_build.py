"""How the native kernels are built: again when something changed, once at a time, and not at all without a compiler."""

import concurrent.futures
import ctypes
import pathlib
import shutil
import subprocess
import sys

import pytest

from gphm_kernels.backends import build


@pytest.fixture
def tiny_sources(tmp_path, monkeypatch):
    """A folder of sources as small as can be, which the builder takes for the kernels'."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    for op in build._OPS:
        (folder / f"{op}.cc").write_text(f"namespace GPHM_ISA {{ int {op}() {{ return 0; }} }}\n")
    for name in build._ONCE[1:]:
        (folder / f"{name}.cc").touch()
    write_answer(folder, 1)
    monkeypatch.setattr(build, "_source_folder", lambda: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def write_answer(folder: pathlib.Path, answer: int) -> None:
    declaration = 'extern "C" __attribute__((visibility("default")))'
    (folder / f"{build._ONCE[0]}.cc").write_text(f"{declaration} int answer() {{ return {answer}; }}\n")


def test_changed_source_is_built_again(tiny_sources):
    first = build.build()
    assert ctypes.CDLL(str(first)).answer() == 1
    written = first.stat().st_mtime_ns
    assert build.build() == first and first.stat().st_mtime_ns == written
    write_answer(tiny_sources, 2)
    second = build.build()
    assert second != first and ctypes.CDLL(str(second)).answer() == 2


def test_another_compiler_makes_another_library(tiny_sources, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    first = build.build()
    assert first.name == build.packed_name()
    monkeypatch.setenv("CXX", " ".join((*build._find_compiler(), "-g0")))
    second = build.build()
    assert second != first and ctypes.CDLL(str(second)).answer() == 1
    assert first.name == build.packed_name()


def test_builds_at_once_leave_one_library(tiny_sources):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: build.build(), range(3)))
    assert len(paths) == 1 and ctypes.CDLL(str(paths.pop())).answer() == 1
    left = sorted(p.name for p in (tiny_sources.parent / "build").iterdir())
    assert [pathlib.Path(name).suffix for name in left] == ["", ".log", ".so"]


def test_failed_build_names_its_log_and_is_not_repeated(tiny_sources):
    (tiny_sources / "rasterize.cc").write_text("this is not C++\n")
    with pytest.raises(build.BuildError, match=r"log: .*\.log") as error:
        build.build()
    log = pathlib.Path(str(error.value).split("log: ")[1].rstrip(")"))
    assert "this is not C++" in log.read_text()
    with pytest.raises(build.BuildError, match="before"):
        build.build()
    write_answer(tiny_sources, 3)
    (tiny_sources / "rasterize.cc").write_text("\n")
    assert ctypes.CDLL(str(build.build())).answer() == 3


def test_without_a_compiler_one_warning_and_the_portable_backend(tmp_path):
    kernels = pathlib.Path(build.__file__).parents[2]
    ignore = shutil.ignore_patterns("__pycache__", "build")
    shutil.copytree(kernels, tmp_path / "kernels", ignore=ignore)
    program = """
import jax.numpy as jnp
from gphm_kernels import backends
from gphm_kernels.backends import native
from gphm_kernels.reference import mesh
for _ in range(2):
    assert backends.dispatch("interpolate_fwd", "auto", jnp.float32) is mesh.interpolate_fwd
assert not native.available()
"""
    environment = {
        "PYTHONPATH": str(tmp_path / "kernels"),
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "compiler" in line]
    assert len(warnings) == 1 and "apt-get install g++" in warnings[0], result.stderr
