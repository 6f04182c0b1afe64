"""Process-wide start-up: multi-host, the compilation cache, and what memory a run took."""

from __future__ import annotations

import logging as stdlib_logging
import resource
import sys

import jax
from absl import flags, logging
from jax.experimental import multihost_utils

from gphm_jax.errors import InputError
from gphm_jax.paths import cache_folder

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; set on every process of a cluster run"
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "number of processes of a cluster run", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", 0, "this process's number, from 0", lower_bound=0)


def start() -> None:
    """Joins the other processes if there are any, and turns the persistent compilation cache on."""
    logging.set_verbosity(logging.INFO)
    # JAX and Orbax tell every internal step at INFO; their warnings and errors stay.
    stdlib_logging.getLogger("jax").setLevel(stdlib_logging.WARNING)
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= stdlib_logging.WARNING or "orbax" not in record.pathname
    )
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if _COORDINATOR.value is None:
        if _PROCESSES.value > 1:
            raise InputError(f"--processes={_PROCESSES.value} needs --coordinator=HOST:PORT of process 0")
        return
    if _PROCESS.value >= _PROCESSES.value:
        raise InputError(f"--process={_PROCESS.value} is not below --processes={_PROCESSES.value}")
    jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    logging.info(
        "process %d of %d, %d devices in all", jax.process_index(), jax.process_count(), jax.device_count()
    )


def is_leader() -> bool:
    """Whether this process writes logs, pictures and figures."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process of a cluster run has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def peak_memory_bytes() -> int:
    """The process's largest resident set so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
