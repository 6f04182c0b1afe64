"""The benchmark program: turns, medians, tables, growth; its scenes, and what it makes for its peers."""

import importlib
import json
import math
import pathlib
import sys

import numpy as np
import pytest

from gphm_kernels import splat

KERNELS = pathlib.Path(__file__).resolve().parents[1] / "kernels"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(KERNELS))
    yield importlib.import_module("bench")
    sys.path.remove(str(KERNELS))


def test_contenders_take_turns_and_who_is_missing_says_why(bench, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    def missing():
        raise bench.peers.Unavailable("it is not installed")

    contenders = {"slow": lambda: (takes(0.5), takes(2.0)), "quick": lambda: (takes(0.02), None), "none": missing}
    rows = {row.contender: row for row in bench.measure("case", "scene", contenders, seconds=9.0)}
    assert (rows["slow"].forward_ms, rows["slow"].both_ms) == pytest.approx((500, 2000))
    assert rows["quick"].forward_ms == pytest.approx(20) and rows["quick"].both_ms is None
    assert rows["quick"].calls >= 5 * rows["slow"].calls >= 15  # a turn of a quick one is several calls
    printed = capsys.readouterr().out
    assert printed.index("quick") < printed.index("slow") and "not measured: it is not installed" in printed


def test_growth_is_the_exponent_between_the_last_two(bench, tmp_path):
    rows = [
        bench.Row(f"growth: {axis}={value}", "", "auto", value, 3.0 * value**power)
        for power, (axis, values) in zip((1, 2, 0.5), bench.GROWTH.items(), strict=True)
        for value in values
    ]
    assert bench.slopes(rows) == pytest.approx({"splats": 1, "channels": 2, "size": 0.5})
    bench.plot(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    json.dumps(bench.environment())


def test_scenes_cover_the_picture_alike_at_any_number(bench):
    covered = []
    for splats in (2_000, 20_000):
        scene = bench.scenes.head(splats, size=64, channels=2)
        image, alpha = splat(**scene.arrays, width=64, height=64)
        assert image.shape == (64, 64, 2)
        covered.append(float(np.mean(alpha)))
    assert 0.1 < covered[0] < 0.5 and math.isclose(*covered, rel_tol=0.1)


def test_the_tiles_of_the_torch_peer_list_what_a_tile_draws(bench):
    scene = bench.scenes.head(500, size=128, channels=2)
    projected = bench.peers.project(**{n: x[None] for n, x in scene.arrays.items()}, near=0.01, far=100.0, eps2d=0.3)
    means, conics, opacities, depths = (np.asarray(x[0]) for x in projected)
    lists = bench.peers._tile_lists(means, conics, opacities, depths, 16, 8)
    _, alpha = splat(**scene.arrays, width=128, height=128)
    drawn = np.asarray(alpha).reshape(8, 16, 8, 16).max((1, 3)).ravel() > 0
    assert drawn.any() and not drawn.all()
    for rows, any_drawn in zip(lists, drawn, strict=True):
        assert len(rows) or not any_drawn
        assert np.all(np.diff(depths[rows]) >= 0)


def test_missing_peers_are_named(bench, tmp_path):
    scene = bench.scenes.head(10, size=16, channels=32)
    with pytest.raises(bench.peers.Unavailable, match=r"no gs\.py in"):
        bench.peers.cpp_peer(str(tmp_path), scene)
