"""Times every kernel on every backend that this machine has, and other rasterizers beside them, in one run.

    python kernels/bench.py --out=runs/bench                   # all cases, some ten minutes on two cores
    python kernels/bench.py --out=runs/bench --cases=splat     # one of splat, mesh, tetrahedra, mlp, growth, or several
    python kernels/bench.py --out=runs/bench --peer=DIR        # and the C++ rasterizer of DIR/gs.py, built beforehand

Contenders of a case take turns, so that a busy machine slows them alike; figures are medians in milliseconds. Writes
bench.txt (the tables), bench.json and growth.png (time against splats, channels and resolution). Who cannot run
here is named with the reason.

All contenders of "splat" project, sort and blend, and JAX's have gradients of everything, the camera's included.
PyTorch's tiles neither project nor sort, nor end a pixel early, and it and gsplat give the camera no gradient: in
their favour.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # run as a program from anywhere

import bench_peers as peers
import bench_scenes as scenes

from gphm_kernels import (
    antialias,
    backends,
    interpolate,
    marching_tetrahedra,
    point_mlp,
    rasterize_mesh,
    splat,
)
from gphm_kernels.dmtet import edge_interpolate

BACKENDS = ("native", "callback", "triton", "xla")
CASES = ("splat", "mesh", "tetrahedra", "mlp", "growth")

Contenders = Mapping[str, Callable[[], tuple[peers.Run, peers.Run | None]]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender's medians in one case."""

    case: str
    scene: str
    contender: str
    forward_ms: float | None
    both_ms: float | None  # forward and backward
    calls: int = 0
    note: str = ""  # why there are no figures


def splat_contenders(scene: scenes.SplatScene, peer: str) -> Contenders:
    """Every backend, and the peers."""
    return {
        **{name: functools.partial(_splat_runs, scene, name) for name in BACKENDS},
        **({"peer": functools.partial(peers.cpp_peer, peer, scene)} if peer else {}),
        "torch, a tile at a time": functools.partial(peers.torch_tiles, scene),
        "gsplat": functools.partial(peers.gsplat_peer, scene),
    }


def _splat_runs(scene: scenes.SplatScene, backend: str) -> tuple[peers.Run, peers.Run]:
    _require(backend)

    def draw(arrays: dict[str, jax.Array]) -> Any:
        return splat(
            arrays["means"], arrays["quats"], arrays["scales"], arrays["opacities"], arrays["features"],
            arrays["world_to_camera"], arrays["intrinsics"], width=scene.size, height=scene.size, backend=backend,
        )  # fmt: skip

    return peers.jax_runs(draw, scene.arrays)


def mesh_contenders(scene: scenes.MeshScene) -> Contenders:
    """Rasterized, interpolated and antialiased, on every backend."""
    return {name: functools.partial(_mesh_runs, scene, name) for name in (*BACKENDS, "nvdiffrast")}


def _mesh_runs(scene: scenes.MeshScene, backend: str) -> tuple[peers.Run, peers.Run]:
    _require(backend)

    def draw(arrays: dict[str, jax.Array]) -> Any:
        raster = rasterize_mesh(arrays["clip"], scene.faces, width=scene.size, height=scene.size, backend=backend)
        image = interpolate(arrays["attributes"], raster, scene.faces, backend=backend)
        return antialias(image, raster, arrays["clip"], scene.faces, backend=backend)

    return peers.jax_runs(draw, {"clip": scene.clip_positions, "attributes": scene.attributes})


def tetrahedra_contenders(resolution: int, channels: int) -> Contenders:
    """Extraction, and features interpolated along the crossing edges, on every backend."""
    return {name: functools.partial(_tetrahedra_runs, resolution, channels, name) for name in BACKENDS}


def _tetrahedra_runs(resolution: int, channels: int, backend: str) -> tuple[peers.Run, None]:
    _require(backend)
    field = scenes.ellipsoid_field(resolution)
    features = jax.random.normal(jax.random.key(0), (field.shape[0], channels))
    capacity = 8 * resolution**2  # vertices; a closed surface has twice as many faces

    def extract(arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        edges, _, _, overflow = marching_tetrahedra(
            arrays["field"], resolution, capacity, 2 * capacity, backend=backend
        )
        return edge_interpolate(arrays["features"][edges], arrays["field"][edges]), overflow

    arrays = {"field": field, "features": features}
    _, overflow = extract(arrays)
    if bool(overflow):
        raise peers.Unavailable("the surface does not fit: raise the capacity in bench.py")
    # Backwards the gradient is as large as the grid: no training step asks for that, see `edge_interpolate`.
    forward = jax.jit(lambda arrays: extract(arrays)[0])
    return lambda: jax.block_until_ready(forward(arrays)), None


def mlp_contenders(splats: int, width: int) -> Contenders:
    """A point network's three layers, on the backends that have it."""
    return {name: functools.partial(_mlp_runs, splats, width, name) for name in ("native", "callback", "xla")}


def _mlp_runs(splats: int, width: int, backend: str) -> tuple[peers.Run, peers.Run]:
    _require(backend)
    sizes = (width,) * 4
    shapes = {"features": (1, splats, width), "first_bias": (1, 1, width)}
    shapes |= {f"weight{i}": (m, n) for i, (m, n) in enumerate(itertools.pairwise(sizes))}
    shapes |= {f"bias{i}": (n,) for i, n in enumerate(sizes[1:])}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = {name: jax.random.normal(key, shape) / 8 for key, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def apply(arrays: dict[str, jax.Array]) -> jax.Array:
        weights, biases = ([arrays[f"{kind}{i}"] for i in range(len(sizes) - 1)] for kind in ("weight", "bias"))
        return point_mlp(arrays["features"], weights, biases, arrays["first_bias"], backend=backend)

    return peers.jax_runs(apply, arrays)


def _require(backend: str) -> None:
    try:
        backends.check(backend, np.dtype(np.float32))
    except ValueError as error:
        raise peers.Unavailable(str(error)) from error


def measure(case: str, scene: str, contenders: Contenders, seconds: float) -> list[Row]:
    """Lets the contenders take turns for about so many seconds in all; at least three turns each."""
    running: dict[tuple[str, str], peers.Run] = {}
    rows: list[Row] = []
    for name, build in contenders.items():
        try:
            runs = dict(zip(("forward", "both"), build(), strict=True))
            for run in filter(None, runs.values()):
                run()  # compiles
        except Exception as error:  # a contender's own trouble, such as too little memory, is not the others'
            note = str(error).strip().splitlines() or [type(error).__name__]
            rows.append(Row(case, scene, name, None, None, note=note[0]))
        else:
            running |= {(name, kind): run for kind, run in runs.items() if run is not None}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in running}
    begin, turn = time.perf_counter(), 0
    while running and (turn < 3 or time.perf_counter() - begin < seconds):
        for key in list(running) if turn % 2 == 0 else reversed(running):
            times[key] += _turn(running[key])
        turn += 1
    for name in dict.fromkeys(name for name, _ in running):
        medians = {kind: statistics.median(times[name, kind]) for kind in ("forward", "both") if (name, kind) in times}
        calls = min(len(times[name, kind]) for kind in medians)
        rows.append(Row(case, scene, name, medians.get("forward"), medians.get("both"), calls))
    print(table(rows), end="\n\n", flush=True)
    return rows


def _turn(run: peers.Run) -> list[float]:
    """Milliseconds of calls one after another: one, or a tenth of a second of short ones."""
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < 0.1:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return times


GROWTH = {
    "splats": (1_000, 10_000, 100_000, 1_000_000),
    "channels": (1, 3, 8, 32, 64, 128),
    "size": (128, 256, 512, 1024, 2048),
}


def growth(seconds: float) -> list[Row]:
    """The fastest backend's time against the number of splats, of channels, and the picture's side."""
    rows = []
    for axis, values in GROWTH.items():
        for value in values:
            scene = scenes.head(**{axis: value})
            contenders = {"auto": functools.partial(_splat_runs, scene, "auto")}
            rows += measure(f"growth: {axis}={value}", scene.shape, contenders, seconds / 8)
    return rows


def slopes(rows: Sequence[Row]) -> dict[str, float]:
    """Per axis of `GROWTH` the exponent of time between its last two values, forward and backward together."""
    found = {}
    for axis, values in GROWTH.items():
        times = {row.case: row.both_ms for row in rows}
        low, high = (times.get(f"growth: {axis}={value}") for value in values[-2:])
        if low and high:
            found[axis] = float(np.log(high / low) / np.log(values[-1] / values[-2]))
    return found


def plot(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Time against each axis of `GROWTH`, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(GROWTH), figsize=(12, 3.6), sharey=True, layout="constrained")
    by_case = {row.case: row for row in rows}
    for ax, (axis, values) in zip(axes, GROWTH.items(), strict=True):
        for kind, label in (("forward_ms", "forward"), ("both_ms", "forward and backward")):
            ax.loglog(values, [getattr(by_case[f"growth: {axis}={v}"], kind) for v in values], "o-", label=label)
        ax.set_xticks(values, labels=[_short(value) for value in values])
        ax.minorticks_off()
        ax.set_xlabel({"splats": "splats", "channels": "channels", "size": "pixels a side"}[axis])
        ax.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _short(number: int) -> str:
    return f"{number // 10**6}M" if number >= 10**6 else f"{number // 1000}k" if number % 1000 == 0 else str(number)


def table(rows: Sequence[Row]) -> str:
    """Aligned text, a block for each case."""
    lines: list[str] = []
    for case in dict.fromkeys(row.case for row in rows):
        block = [row for row in rows if row.case == case]
        head = f"  {'median ms':26}{'forward':>10}{'with backward':>16}{'calls':>8}"
        lines += ["", f"{case}: {block[0].scene}", head]
        for row in sorted(block, key=lambda row: row.both_ms or row.forward_ms or float("inf")):
            if row.note:
                lines.append(f"  {row.contender:26}not measured: {row.note}")
            else:
                cells = [f"{x:.1f}" if x is not None else "-" for x in (row.forward_ms, row.both_ms)]
                lines.append(f"  {row.contender:26}{cells[0]:>10}{cells[1]:>16}{row.calls:>8}")
    return "\n".join(lines).strip()


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")] if cpuinfo.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def main(argv: Sequence[str]) -> None:
    """Runs the chosen cases and writes what they cost."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument '{argv[1]}'")
    given = flags.FLAGS
    wrong = sorted(set(given.cases) - set(CASES))
    if wrong:
        raise app.UsageError(f"unknown case '{wrong[0]}': choose from {', '.join(CASES)}")
    out = pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for measured in _measure_cases(given.cases, given.seconds, given.peer):
        rows += measured
        _write(rows, out)  # what is measured is not lost by what follows
    print(f"the figures are in {out}")


def _measure_cases(cases: Sequence[str], seconds: float, peer: str) -> Iterator[list[Row]]:
    if "splat" in cases:
        for channels in (3, 32, 128) if jax.default_backend() == "gpu" else (32,):
            scene = scenes.head(channels=channels)
            yield measure(f"splat, {channels} channels", scene.shape, splat_contenders(scene, peer), seconds)
    if "mesh" in cases:
        surface = scenes.mesh()
        yield measure("mesh", surface.shape, mesh_contenders(surface), seconds)
    if "tetrahedra" in cases:
        yield measure("tetrahedra", "128 cells a side, 32 channels", tetrahedra_contenders(128, 32), seconds)
    if "mlp" in cases:
        yield measure("mlp", "100,000 points, three layers 64 wide", mlp_contenders(100_000, 64), seconds)
    if "growth" in cases:
        yield growth(seconds)


def _write(rows: Sequence[Row], out: pathlib.Path) -> None:
    exponents, text = slopes(rows), table(rows)
    if exponents:
        plot(rows, out / "growth.png")
        grows = "time grows with the power " + ", ".join(f"{x:.2f} of {axis}" for axis, x in exponents.items())
        text += f"\n\n{grows}"
        print(grows)
    (out / "bench.txt").write_text(text + "\n")
    result = {**environment(), "rows": [dataclasses.asdict(row) for row in rows], "exponents": exponents}
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")


def define_flags() -> None:
    """Only when run as a program: two programs may share a flag's name."""
    flags.DEFINE_string("out", None, "folder for the tables, the figures and the plot", required=True)
    flags.DEFINE_string("peer", "", "folder of another C++ rasterizer: gs.py and its library")
    flags.DEFINE_list("cases", list(CASES), f"which to run: {', '.join(CASES)}")
    flags.DEFINE_float("seconds", 20.0, "time for the calls of one case, compilation aside", lower_bound=0.1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
