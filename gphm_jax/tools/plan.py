"""Says what a training run will ask of a cluster: parameters, memory, arithmetic, data, time.

    python -m gphm_jax.tools.plan --config=configs/gaussian.py:paper --devices=8 --identities=N --out=FILE.json

Nothing is trained. Each number names its origin: counted, compiled, measured, stated or estimated. `--input=DATASET`
measures files that are there; `--nocompile` spares a minute and takes a formula for the activations.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from gphm_jax import files, report
from gphm_jax.errors import InputError, run_main
from gphm_jax.paths import expanded
from gphm_jax.planning import Cluster, Corpus, FileSizes, estimated_files, plan
from gphm_jax.settings import Settings, read_flag

_MEASURED_FRAMES = 50


def main(argv: Sequence[str]) -> None:
    """Plans what the flags describe."""
    del argv
    given = flags.FLAGS
    if not given.out:
        raise InputError("--out is missing: give the JSON file to write")
    settings = read_flag(Settings, given["config"])
    logging.set_verbosity(logging.INFO)
    sizes = (
        measured_files(expanded(given.input)) if given.input else estimated_files(settings.data.image_size)
    )
    found = plan(
        settings,
        Cluster(
            devices=given.devices,
            hosts=given.hosts,
            memory_gb=given.device_memory_gb,
            tflops=given.device_tflops,
            utilization=given.utilization,
        ),
        Corpus(identities=given.identities, frames=given.frames, views=given.views, files=sizes),
        compile_steps=given.compile,
    )
    out = expanded(given.out)
    files.write_json(out, found)
    for line in summary(found):
        print(line)
    logging.info("done: %s", out)


def measured_files(path: pathlib.Path) -> FileSizes:
    """Bytes a view and a frame of a plain dataset's files, of some of its frames."""
    from gphm_jax.data.layout import open_dataset
    from gphm_jax.data.sampler import spread

    dataset = open_dataset(path)
    views = frames = pictures = 0
    chosen = spread(dataset.frames, _MEASURED_FRAMES)
    for frame in chosen:
        for kind in ("images", "cameras"):
            views += _size(path / frame.identity / kind / frame.name)
        for kind in ("params", "expressions"):
            frames += _size(path / frame.identity / kind / frame.name)
        pictures += len(frame.views)
    if not views:
        raise InputError(f"{path} has no files of frames to measure: give a plain dataset, not a packed one")
    return FileSizes(
        view=views / pictures,
        frame=frames / len(chosen),
        how="measured",
        note=f"{len(chosen)} frames of {path}",
    )


def _size(folder: pathlib.Path) -> int:
    return sum(item.stat().st_size for item in folder.glob("*"))


def summary(found: dict[str, Any]) -> Iterator[str]:
    """The plan in a few lines."""

    def text(entry: dict[str, Any], form: str = "{:,.3g}") -> str:
        unit = entry.get("unit", "")
        value = entry["value"]
        shown = report.size_in_bytes(value) if unit == "bytes" else f"{form.format(value)} {unit}".strip()
        return f"{shown} ({entry['how']})"

    for name, stage in found["stages"].items():
        memory = stage["memory_per_device"]
        yield f"{name}: {text(stage['parameters']['total'], '{:,}')} parameters, {text(stage['points'], '{:,}')} points"
        parts = ", ".join(
            f"{key} {text(memory[key])}" for key in ("weights", "optimizer", "batch", "activations")
        )
        yield f"  memory a device: {text(memory['total'])} = {parts}"
        flops = stage["flops_per_step_and_device"]["networks"]
        yield f"  a step: {text(flops)} operations a device, {text(stage['seconds_per_step'])}"
        yield f"  {text(stage['steps'], '{:,}')} steps: {text(stage['hours'])}"
    data = found["data"]
    yield f"data: {text(data['pictures'], '{:,}')} pictures, {text(data['bytes_on_disk'])} on disk"
    rate = data["read_rate_per_host"]
    yield f"  read by each host: {report.size_in_bytes(rate['value'])}/s ({rate['how']})"
    yield from (f"warning: {warning}" for warning in found["warnings"])
    if any(x["memory_per_device"]["activations"]["how"] == "estimated" for x in found["stages"].values()):
        # Of the preset paper: 3.5 times in stage 1, twice in stage 2.
        yield "note: a formula's activations may be two to four times too small: leave --nocompile out to be sure"


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    config_flags.DEFINE_config_file(
        "config", None, "configs/gaussian.py[:PRESET] or configs/mesh.py[:PRESET]"
    )
    flags.DEFINE_integer("devices", 8, "Accelerators in all.", lower_bound=1)
    flags.DEFINE_integer("hosts", 1, "Machines that hold them.", lower_bound=1)
    flags.DEFINE_integer("identities", 400, "People in the data.", lower_bound=1)
    flags.DEFINE_integer("frames", 20, "Frames (expressions) of each.", lower_bound=1)
    flags.DEFINE_integer("views", 80, "Views of each frame.", lower_bound=1)
    flags.DEFINE_float("device_memory_gb", 24.0, "Memory of a device (an RTX 4090 has 24).", lower_bound=0.1)
    flags.DEFINE_float(
        "device_tflops", 80.0, "Its throughput at the run's precision, 10^12 operations a second."
    )
    flags.DEFINE_float(
        "utilization", 0.3, "The share of it that steps reach.", lower_bound=0.001, upper_bound=1.0
    )
    flags.DEFINE_bool("compile", True, "Compile each stage's step for its memory.")
    flags.DEFINE_string("input", None, "A dataset whose files are measured; none: sizes are estimated.")
    flags.DEFINE_string("out", None, "The JSON file to write.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
