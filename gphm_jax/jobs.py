"""Many items at once, in processes of this machine or of a cluster: finished ones skipped, failed ones listed.

joblib is the engine: its own processes here ("loky"), or those of a Ray cluster ("ray": the extra package `cluster`,
started on a machine of the cluster, with a file system that all of its machines share).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from absl import logging
from tqdm import tqdm

from gphm_jax.errors import InputError, TrainingError
from gphm_jax.files import write_json

T = TypeVar("T")
R = TypeVar("R")

BACKENDS = ("loky", "ray")
_ROUND = 8  # items for each worker of a cluster between two looks at the results
_SHOWN = 10  # failures listed on the terminal; the file has them all
DIED = "its process ended without a word (out of memory, or killed)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an item failed: one line, and the traceback where the input was not at fault."""

    item: str
    reason: str
    trace: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome(Generic[R]):
    """What became of the items."""

    results: tuple[R, ...]  # of those that ran, in the order of the items
    skipped: int  # finished before
    failures: tuple[Failure, ...]

    def conclude(self, path: pathlib.Path) -> None:
        """Lists what failed and writes it to a JSON file; raises `TrainingError` (exit status 1) if anything did.

        The file of an earlier run is removed when nothing failed.
        """
        if not self.failures:
            path.unlink(missing_ok=True)
            return
        write_json(path, [dataclasses.asdict(failure) for failure in self.failures])
        for failure in self.failures[:_SHOWN]:
            logging.error("%s: %s", failure.item, failure.reason)
        count = len(self.results) + self.skipped + len(self.failures)
        raise TrainingError(
            f"{len(self.failures)} of {count} failed, listed in {path}: "
            "mend them and run the same command again; what is finished stays"
        )


def run_jobs(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    done: Callable[[T], bool] = lambda item: False,
    name: Callable[[T], str] = str,
    size: Callable[[T], int] = lambda item: 1,
    workers: int = 0,
    backend: str = "loky",
    description: str = "",
    unit: str = "item",
) -> Outcome[R]:
    """Calls a function on every item that is not `done`, each in one process with one thread, under one progress bar.

    An exception fails its item and no other; so does the end of a worker process, after which the items it may have
    held are tried once more, one at a time. `function`, the items and the results are pickled: write results to files
    and return little. `size` is what an item counts on the bar, in `unit`s. `workers` 0 takes one a core (of the
    cluster, with "ray"); 1 runs here, without processes. An interrupt ends the workers.
    """
    pending = {number: item for number, item in enumerate(items) if not done(item)}
    results: dict[int, R] = {}
    failures: dict[int, Failure] = {}
    if not pending:
        return Outcome(results=(), skipped=len(items), failures=())
    engine = _Engine(functools.partial(_guarded, function, _process()), backend, workers)
    total = sum(size(item) for item in pending.values())
    with tqdm(total=total, unit=unit, desc=description, smoothing=0.1) as bar:
        for number, result, reason, trace in engine.run(pending):
            if reason is None:
                results[number] = result
            else:
                failures[number] = Failure(item=name(items[number]), reason=reason, trace=trace)
            bar.update(size(items[number]))
    return Outcome(
        results=tuple(results[number] for number in sorted(results)),
        skipped=len(items) - len(results) - len(failures),
        failures=tuple(failures[number] for number in sorted(failures)),
    )


_Report = tuple[int, Any, str | None, str | None]  # number, result, reason of a failure, its traceback


def _guarded(function: Callable[[T], R], home: tuple[str, int], number: int, item: T) -> _Report:
    if _process() != home:
        _be_a_worker()
    try:
        return number, function(item), None, None
    except (InputError, TrainingError) as error:
        return number, None, str(error), None
    except Exception as error:  # a defect fails its item alone: thousands of others wait
        first = (str(error).strip() or "no message").splitlines()[0]
        return number, None, f"{type(error).__name__}: {first}", traceback.format_exc()


def _process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _be_a_worker() -> None:
    """One thread for each process, and interrupts left to the parent, which ends its workers."""
    import cv2

    cv2.setNumThreads(1)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Engine:
    """joblib with the choices made, and what it does when a worker dies."""

    def __init__(self, call: Callable[[int, Any], _Report], backend: str, workers: int) -> None:
        if backend not in BACKENDS:
            raise InputError(f"no such backend '{backend}': use {' or '.join(BACKENDS)}")
        self._call = call
        self._backend = backend
        self._death, cores = _ray() if backend == "ray" else _loky()
        self._workers = workers or cores

    def run(self, pending: dict[int, Any]) -> Iterator[_Report]:
        """Every item's report, in the order of completion."""
        if self._backend == "loky" and min(self._workers, len(pending)) == 1:
            yield from (self._call(number, item) for number, item in pending.items())
            return
        try:
            yield from self._all(dict(pending))
        finally:
            if self._backend == "loky":
                from joblib.externals.loky import get_reusable_executor

                # Or its processes would hold their memory for minutes; and an interrupt would wait for their items.
                get_reusable_executor().shutdown(kill_workers=True)

    def _all(self, waiting: dict[int, Any]) -> Iterator[_Report]:
        while waiting:
            started: set[int] = set()
            for report in self._until_a_death(waiting, started):
                del waiting[report[0]]
                yield report
            # What was handed out and did not come back may have killed its process.
            for number in sorted(started & waiting.keys()):
                alone = {number: waiting.pop(number)}
                # Read to the end, or joblib would end the workers and start new ones for the next item.
                yield from [*self._until_a_death(alone, set())] or [(number, None, DIED, None)]

    def _until_a_death(self, pending: dict[int, Any], started: set[int]) -> Iterator[_Report]:
        import joblib

        def handed_out(numbers: Sequence[int]) -> Iterator[Any]:
            for number in numbers:
                started.add(number)
                yield joblib.delayed(self._call)(number, pending[number])

        numbers = list(pending)
        # Two at least, because joblib runs a single worker's items in this very process.
        workers = max(2, min(self._workers, len(numbers)))
        if self._backend == "loky":
            rounds, return_as, threads = [numbers], "generator_unordered", {"inner_max_num_threads": 1}
        else:  # Ray's backend gives results when all are there: in rounds, or the bar would stand still
            length = _ROUND * workers
            rounds = [numbers[first : first + length] for first in range(0, len(numbers), length)]
            return_as, threads = "list", {}
        try:
            for some in rounds:
                with joblib.parallel_config(backend=self._backend, **threads):
                    parallel = joblib.Parallel(
                        n_jobs=workers, return_as=return_as, batch_size=1, pre_dispatch="2*n_jobs"
                    )
                    yield from parallel(handed_out(some))
        except self._death:
            return


def _loky() -> tuple[type[Exception], int]:
    """What joblib raises when one of its processes died, and how many cores there are."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    return TerminatedWorkerError, available_cores()


def _ray() -> tuple[type[Exception], int]:
    """Makes joblib know Ray, on the cluster that RAY_ADDRESS names; returns the same as `_loky`."""
    try:
        import ray
        from ray.exceptions import RayError
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise InputError("--backend=ray needs Ray: pip install 'gphm_jax[cluster]'") from error
    register_ray()
    if not ray.is_initialized():
        ray.init()
    return RayError, int(ray.cluster_resources()["CPU"])


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
