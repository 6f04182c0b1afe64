"""Many jobs at once: order, skipping, failures, a worker's death, an interrupt, and a cluster's backend."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import joblib
import pytest
from absl import logging
from joblib._parallel_backends import ThreadingBackend

from gphm_jax import jobs
from gphm_jax.errors import InputError, TrainingError
from gphm_jax.jobs import DIED, run_jobs

ROOT = pathlib.Path(__file__).parent.parent


def work(item: int) -> tuple[int, str | None]:
    """Fails of each kind, dies, or squares; with the thread limit that it runs under."""
    if item == 3:
        raise InputError("clip 3 has no face: film again")
    if item == 4:
        raise ZeroDivisionError("first line\nsecond line")
    if item == 5 and os.getpid() != PARENT:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item, os.environ.get("OMP_NUM_THREADS")


PARENT = os.getpid()


def kill_oneself(item: int, parent: int) -> int:
    if item == 1:
        assert os.getpid() != parent, "a suspect must not run in the parent"
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_skips_runs_and_reports_in_order(tmp_path):
    asked = []
    outcome = run_jobs(
        work,
        [0, 1, 2, 3, 4, 6],
        done=lambda item: (asked.append(item), item == 2)[1],
        name=lambda item: f"clip {item}",
        workers=2,
    )
    assert asked == [0, 1, 2, 3, 4, 6]
    assert outcome.results == ((0, "1"), (1, "1"), (36, "1")) and outcome.skipped == 1
    first, second = outcome.failures
    assert (first.item, first.reason, first.trace) == ("clip 3", "clip 3 has no face: film again", None)
    assert (second.item, second.reason) == ("clip 4", "ZeroDivisionError: first line")
    assert "second line" in second.trace


def test_one_worker_is_this_process_and_gives_the_same():
    outcome = run_jobs(work, [0, 3, 4, 7], workers=1)
    assert [result[0] for result in outcome.results] == [0, 49]
    assert [failure.item for failure in outcome.failures] == ["3", "4"]


def test_nothing_to_do_starts_nothing():
    outcome = run_jobs(work, [3, 4], done=lambda item: True, backend="no such backend")
    assert (outcome.results, outcome.skipped, outcome.failures) == ((), 2, ())


def test_no_worker_stays():
    (pid,) = set(run_jobs(lambda item: os.getpid(), [0, 1], workers=2).results[:1])
    assert pid != os.getpid()
    wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists())


def test_the_death_of_a_worker_fails_its_item_alone():
    parent = os.getpid()
    outcome = run_jobs(lambda item: kill_oneself(item, parent), list(range(4)), workers=2)
    assert outcome.results == (0, 2, 3)
    assert [(failure.item, failure.reason) for failure in outcome.failures] == [("1", DIED)]


def test_failures_are_listed_on_the_terminal_and_in_a_file(tmp_path, caplog):
    path = tmp_path / "failed.json"
    outcome = run_jobs(work, [0, 3], workers=1)
    logging.set_verbosity(logging.INFO)
    with pytest.raises(TrainingError, match="1 of 2 failed, listed in .*failed.json"):
        outcome.conclude(path)
    assert "3: clip 3 has no face: film again" in caplog.text
    (failure,) = json.loads(path.read_text())
    assert failure == {"item": "3", "reason": "clip 3 has no face: film again", "trace": None}
    run_jobs(work, [0, 1], workers=1).conclude(path)
    assert not path.exists(), "an old list does not outlive its faults"


def test_the_bar_counts_sizes(capsys):
    run_jobs(work, [0, 1, 2], size=lambda item: 10 * item, workers=1, unit="image", description="pack")
    shown = capsys.readouterr().err
    assert "pack: 100%" in shown and "30/30" in shown and "image/s" in shown


class RayError(Exception):
    """Stands in for `ray.exceptions.RayError`."""


class Cluster(ThreadingBackend):
    """Stands in for Ray's backend: a pool with callbacks, which cannot give results one by one."""

    supports_return_generator = False


def install_ray(monkeypatch, backend=Cluster) -> list[str]:
    """Puts a stand-in for the parts of Ray in use in its place; returns the list of calls that it keeps."""
    names = ("ray", "ray.util", "ray.util.joblib", "ray.exceptions")
    modules = {name: types.ModuleType(name) for name in names}
    calls = []

    def register_ray():
        calls.append("register_ray")
        joblib.register_parallel_backend("ray", backend)

    modules["ray.util.joblib"].register_ray = register_ray
    modules["ray.exceptions"].RayError = RayError
    modules["ray"].is_initialized = lambda: "init" in calls
    modules["ray"].init = lambda: calls.append("init")
    modules["ray"].cluster_resources = lambda: {"CPU": 3.0}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_a_cluster_runs_the_same_jobs(monkeypatch):
    calls = install_ray(monkeypatch)
    monkeypatch.setattr(jobs, "_ROUND", 1)  # three rounds of the cluster's three cores
    outcome = run_jobs(work, [0, 1, 2, 3, 4, 5, 6], backend="ray")
    assert calls == ["register_ray", "init"]
    assert [result[0] for result in outcome.results] == [0, 1, 4, 25, 36]
    assert [failure.item for failure in outcome.failures] == ["3", "4"]


def test_a_death_on_a_cluster_fails_its_item_alone(monkeypatch):
    class Deadly(Cluster):
        def submit(self, func, callback=None):
            (_, (number, _), _) = func.items[0]
            return super().submit(die if number == 1 else func, callback)

    def die():
        raise RayError("the actor died")

    install_ray(monkeypatch, Deadly)
    outcome = run_jobs(work, [0, 1, 2, 6], backend="ray", workers=2)
    assert [result[0] for result in outcome.results] == [0, 4, 36]
    assert [(failure.item, failure.reason) for failure in outcome.failures] == [("1", DIED)]


def test_a_missing_cluster_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--backend=ray needs Ray: pip install 'gphm_jax\[cluster\]'"):
        run_jobs(work, [0], backend="ray")
    with pytest.raises(InputError, match="no such backend 'dask': use loky or ray"):
        run_jobs(work, [0], backend="dask")


SLEEPER = """
import os, pathlib, sys, time
from gphm_jax.errors import run_main
from gphm_jax.jobs import run_jobs

def sleep(item):
    pathlib.Path(sys.argv[0]).with_name(f"{os.getpid()}.pid").touch()
    time.sleep(60)

run_main(lambda argv: run_jobs(sleep, [0, 1, 2, 3], workers=2))
"""


def test_an_interrupt_ends_the_workers(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers too
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "error: interrupted; run the same command again" in said and "Traceback" not in said, said
    wait_for(lambda: not any(pathlib.Path(f"/proc/{path.stem}").exists() for path in tmp_path.glob("*.pid")))


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_cores():
    assert 1 <= jobs.available_cores() <= (os.cpu_count() or 1)
