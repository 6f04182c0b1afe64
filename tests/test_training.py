"""Training end to end on the tiny preset: it learns, resumes to the same bits, and stops in one line when it must."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from gphm_jax.scores import ScoreRegressor

ROOT = pathlib.Path(__file__).parent.parent
SHORT = [
    "--config.stage1.steps=12", "--config.stage2.steps=20", "--config.log.every=2", "--config.log.checkpoint_every=10",
    "--config.log.grid_every=20",
    # Every batch shows both people, so that one batch's loss can be compared with another's.
    "--config.stage1.identities=2", "--config.stage2.identities=2",
]  # fmt: skip


def train(*arguments):
    """Runs train.py as a user does; returns the finished process."""
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment.pop("PJRT_NPROC", None)  # of the tests' eight devices
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs that share one embedded dataset, and one finished run `whole`."""
    folder = tmp_path_factory.mktemp("runs")
    done = train("--config=configs/gaussian.py:tiny", f"--workdir={folder / 'whole'}", *SHORT)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def rows(workdir, stage):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


def test_tiny_lowers_its_losses_and_reports(runs):
    workdir = runs / "whole"
    for stage in ("stage1", "stage2"):
        losses = [row["loss"] for row in rows(workdir, stage)]
        assert sum(losses[-2:]) < 0.98 * sum(losses[:2])
    figures = json.loads((workdir / "metrics.json").read_text())
    assert figures["config"] == "gaussian:tiny"
    assert figures["stage2"]["steps"] == 20 and figures["stage2"]["seconds"] > 0
    for key in (
        "psnr",
        "psnr_mask",
        "ssim",
        "lpips_vgg",
        "lpips_alex",
        "count",
        "nearest_view_psnr",
        "mean_image_psnr",
    ):
        assert math.isfinite(figures["heldout_views"][key])
    assert len(list((workdir / "heldout").glob("*_render.png"))) == figures["heldout_views"]["count"]
    assert ScoreRegressor.load(workdir / "scores.npz").provenance == figures["expression_scores"]
    assert "<html" in (workdir / "report.html").read_text()
    assert list((workdir / "images").glob("stage2_*.png"))


def test_a_finished_run_says_so(runs):
    again = train("--config=configs/gaussian.py:tiny", f"--workdir={runs / 'whole'}", *SHORT)
    assert again.returncode == 0 and "done already" in again.stderr


def test_an_interrupted_run_resumes_to_the_same_bits(runs):
    whole, cut = runs / "whole", runs / "cut"
    shutil.copytree(whole, cut)
    (cut / "metrics.json").unlink()
    (cut / "scores.npz").unlink()
    shutil.rmtree(cut / "checkpoints" / "stage2" / "20")
    resumed = train("--config=configs/gaussian.py:tiny", f"--workdir={cut}", *SHORT)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    first, second = (rows(folder, "stage2") for folder in (whole, cut))
    assert [row["step"] for row in first] == [row["step"] for row in second]
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    scores = [ScoreRegressor.load(folder / "scores.npz").directions for folder in (whole, cut)]
    assert scores[0].any() and (scores[0] == scores[1]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/gaussian.py:tiny", "--config.stage2.stepz=3"], '\'stepz\': Did you mean "steps"'),
        (["--config=configs/gaussian.py:tiny", "--config.data.path=/nowhere/at/all"], "/nowhere/at/all"),
        ([], "no config"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(runs, arguments, words):
    result = train(*arguments, f"--workdir={runs / 'bad'}")
    assert result.returncode == 2, result.stderr[-2000:]
    last = result.stderr.strip().splitlines()[-1]
    assert words in last and "Traceback" not in result.stderr
    assert not (runs / "bad" / "metrics.json").exists()


def test_a_lost_surface_stops_the_run_with_advice(runs):
    result = train(
        "--config=configs/mesh.py:tiny",
        f"--workdir={runs / 'lost'}",
        *(flag for flag in SHORT if "stage2" not in flag),
        "--config.start.sdf=ellipsoid",
        "--config.start.sdf_steps=20",
        "--config.start.code_steps=0",
        "--config.stage1.rates.networks=5.0",
    )
    assert result.returncode == 1, result.stderr[-2000:]
    last = result.stderr.strip().splitlines()[-1]
    assert "stage1" in last and "new --workdir" in last and "Traceback" not in result.stderr
