"""Plans of training runs: counts that equal the real state's, what does not fit, and the command."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from dataset_fixture import write_dataset
from prior_fixture import SETTINGS
from tiny_models import GUIDE as GUIDE_CONFIG

from gphm_jax.gaussians import GaussianConfig
from gphm_jax.optim import adam
from gphm_jax.planning import Cluster, Corpus, abstract_stage, estimated_files, plan, surface_vertices
from gphm_jax.settings import Settings, StageSettings
from gphm_jax.sharding import device_mesh, state_sharding
from gphm_jax.stages import GAUSSIANS, rebuild_gaussians
from gphm_jax.state import create_state
from gphm_jax.step import LossWeights
from gphm_jax.tools.plan import measured_files, summary

ROOT = pathlib.Path(__file__).parent.parent
ENVIRONMENT = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
STAGE = StageSettings(steps=1000, identities=8, frames=1, views=2, losses=LossWeights(perceptual=0.0))
TOY = dataclasses.replace(
    SETTINGS,
    fsdp=2,
    networks=dataclasses.replace(SETTINGS.networks, identity_dim=64),
    guide=GUIDE_CONFIG,
    gaussian=GaussianConfig(num_splats=300),
    stage1=STAGE,
    stage2=STAGE,
)
CLUSTER = Cluster(devices=8, hosts=2, memory_gb=24.0, tflops=1.0, utilization=0.5)
CORPUS = Corpus(identities=100, frames=2, views=3, files=estimated_files(32))


@pytest.fixture(scope="module")
def found():
    return plan(TOY, CLUSTER, CORPUS)


def test_counts_are_the_real_states(found):
    staged = abstract_stage(GAUSSIANS, STAGE, TOY, CORPUS)
    meta = {
        "settings": dataclasses.asdict(TOY),
        "identities": [str(row) for row in range(100)],
        "num_frames": 200,
        "num_landmarks": 68,
        "num_splats": 300,
        "regions": {"expression_end": 39, "motion_start": 29},
    }
    real = jax.eval_shape(
        lambda: create_state(rebuild_gaussians(meta), adam(STAGE.rates, STAGE.schedule, steps=1))[1]
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), real.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), staged.state.params
    )
    stage = found["stages"]["stage2"]
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(real.params)]
    assert stage["parameters"]["total"] == {"value": sum(sizes), "how": "counted"}
    groups = {key: entry["value"] for key, entry in stage["parameters"].items() if key != "total"}
    assert sum(groups.values()) == sum(sizes) and groups["codes"] == 100 * 64 and groups["positions"] == 900
    # What lies on a device, by the shardings of the run itself.
    places = state_sharding(device_mesh(2), real)
    there = jax.tree.map(lambda x, s: 4 * math.prod(s.shard_shape(x.shape)), real, places)
    memory = stage["memory_per_device"]
    assert memory["weights"]["value"] == sum(jax.tree.leaves((there.params, there.fixed)))
    assert memory["optimizer"]["value"] == sum(jax.tree.leaves((there.optimizer, there.step)))
    rows = {row["name"]: row for row in stage["arrays"]}
    assert len(rows) == len(jax.tree.leaves(real))
    codes = (
        rows["params/subjects/codes/value"]
        if "params/subjects/codes/value" in rows
        else rows["params/subjects/codes"]
    )
    assert codes["placed"] == "axis 0 over fsdp" and codes["bytes_per_device"] == 4 * 50 * 64
    assert any(row["placed"] == "on every device" for name, row in rows.items() if "positions" in name)


def test_every_number_says_where_it_comes_from(found):
    def numbers(value):
        if isinstance(value, dict) and "how" in value:
            yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from numbers(item)

    seen = list(numbers(found))
    assert {entry["how"] for entry in seen} == {"counted", "compiled", "stated", "estimated"}
    assert all(np.isfinite(entry["value"]) and entry["value"] >= 0 for entry in seen)
    for stage in found["stages"].values():
        assert stage["fits"] and stage["memory_per_device"]["activations"]["how"] == "compiled"
        assert stage["memory_per_device"]["activations"]["value"] > 0
        assert stage["flops_per_step_and_device"]["networks"]["value"] > 1e6
        assert (
            stage["batch"]["identities_per_device"]["value"] == 1
            and stage["batch"]["pictures"]["value"] == 16
        )
        assert stage["hours"]["value"] == pytest.approx(stage["seconds_per_step"]["value"] / 3.6)
    assert found["data"]["pictures"]["value"] == 600
    assert not found["warnings"] and "stage2: " in "\n".join(summary(found))


def test_what_does_not_fit_is_said():
    tight = dataclasses.replace(CLUSTER, devices=6, hosts=4, memory_gb=1e-3)
    settings = dataclasses.replace(TOY, fsdp=4)
    found = plan(settings, tight, CORPUS, compile_steps=False)
    text = "\n".join(found["warnings"])
    assert "6 devices do not divide over 4 hosts" in text
    assert "config.fsdp=4 does not divide 6 devices" in text
    assert "config.stage1.identities=8 does not divide over 6 devices: make it a multiple of 6" in text
    assert "stage2 needs 0.0 GB on a device that has 0.001: raise fsdp" in text
    assert not found["stages"]["stage2"]["fits"]
    assert found["stages"]["stage2"]["memory_per_device"]["activations"]["how"] == "estimated"


def test_the_paper_has_about_a_hundred_thousand_vertices():
    assert 80_000 < surface_vertices(Settings()) < 160_000


def test_files_are_measured(tmp_path):
    data = write_dataset(tmp_path / "data", identities=1, frames=2)
    sizes = measured_files(data)
    images = sum(item.stat().st_size for item in (data / "000" / "images").glob("*/*"))
    assert sizes.how == "measured" and images / 6 < sizes.view < images / 6 + 2000 and sizes.frame > 1000


def test_the_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "gphm_jax.tools.plan",
        "--config=configs/gaussian.py:tiny",
        "--nocompile",
    ]
    out = tmp_path / "plan.json"
    done = subprocess.run(
        [*command, f"--out={out}", "--devices=1", "--identities=7"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert "note: a formula's activations" in done.stdout
    assert "stage1: " in done.stdout and json.loads(out.read_text())["corpus"]["identities"]["value"] == 7
