"""What every test runs under: eight CPU devices, checked shapes, no silent broadcasting, a compilation cache."""

import hashlib
import os
import pathlib

# Before JAX starts: eight devices on any machine, so that sharding is tested everywhere. `PJRT_NPROC` sizes the CPU
# client's thread pool; with fewer threads than devices a `pure_callback` waits for itself for ever.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Most of the tests' time is compilation, which light optimization shortens by a quarter.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=1"
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("MPLBACKEND", "Agg")

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as type checkers have it


def typechecker(function):
    """Checks a function's arguments and result; leaves the constructors of dataclasses alone.

    JAX rebuilds a pytree through its constructor with whatever leaves it holds at the time: shapes, shardings, NumPy
    arrays, None. What a function is given and gives back is checked all the same.
    """
    return function if function.__name__ == "__init__" else CHECK(function)


# Before the project is imported: every annotated shape and type is checked at each call.
install_import_hook(["gphm_jax", "gphm_kernels"], f"{__name__}.typechecker")

import jax  # noqa: E402
import pytest  # noqa: E402


def _compilation_cache() -> str:
    """A folder for this machine's compiled programs: code made for another CPU must not be loaded."""
    try:
        cpu = pathlib.Path("/proc/cpuinfo").read_text()
        flags = next((line for line in cpu.splitlines() if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    key = hashlib.sha256(f"{jax.__version__} {os.environ['XLA_FLAGS']} {flags}".encode()).hexdigest()[:12]
    return str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax" / key)


jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", _compilation_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests marked `gpu` out where JAX has no GPU (run them with JAX_PLATFORMS=cuda,cpu)."""
    if jax.default_backend() == "gpu":
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def float64():
    """Runs one test with 64-bit arrays, as finite differences need."""
    with jax.enable_x64(True):
        yield
