"""Two processes train together as one: the flags of a cluster run, on this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from tests.dataset_fixture import write_dataset

ROOT = pathlib.Path(__file__).parent.parent


def command(dataset, workdir, *extra):
    settings = {
        "data.path": dataset, "start.sdf": "ellipsoid", "start.sdf_steps": 20, "start.code_steps": 0, "stage1.steps": 4,
        "stage1.identities": 2, "stage1.views": 1, "log.every": 2, "log.checkpoint_every": 4, "log.grid_every": 4,
        "stage1.losses.eye_gain": 1.0,  # the fixture's heads have 5 landmarks
    }  # fmt: skip
    # Shallow, to be compiled fast.
    settings |= {"networks.depth": 2, "networks.injection_depth": 2, "networks.encoder_widths": (8, 8)}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return [
        sys.executable,
        "train.py",
        "--config=configs/mesh.py:tiny",
        f"--workdir={workdir}",
        *flags,
        *extra,
    ]


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_like_one(tmp_path):
    dataset = write_dataset(tmp_path / "data")
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment.pop("PJRT_NPROC", None)  # of the tests' eight devices
    alone = subprocess.run(
        command(dataset, tmp_path / "one"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert alone.returncode == 0, alone.stderr[-2000:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    together = [
        subprocess.Popen(
            command(dataset, tmp_path / "two", *flags, f"--process={n}"),
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for n in range(2)
    ]
    texts = [process.communicate(timeout=200)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0], texts[0][-2000:] + texts[1][-2000:]
    assert len(losses(tmp_path / "two")) == 2
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    np.testing.assert_allclose(second[0], first[0], rtol=1e-5)
    # Adam divides by the gradient's size and so enlarges rounding, step by step, where gradients are tiny.
    np.testing.assert_allclose(second, first, rtol=1e-3)
