"""What a training run will ask of a cluster, before one is rented.

Every number says where it comes from: `counted` from the very shapes that the run makes, `compiled` by XLA from the
run's own step (on this machine, for its CPU), `measured` on files, `stated` by the user, `estimated` by a formula or
from a smaller run, which its note names. Nothing is trained and no weight is made: all is abstract shapes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh

from gphm_jax.optim import adam, group_of
from gphm_jax.perceptual import load_lpips
from gphm_jax.settings import Settings, StageSettings
from gphm_jax.sharding import BATCH_AXES, state_sharding
from gphm_jax.stages import GAUSSIANS, GUIDE, Stage, rebuild
from gphm_jax.state import TrainState, split_model
from gphm_jax.step import StepContext, make_step
from gphm_jax.types import NUM_CHANNELS, Batch, Camera, Pose

LANDMARKS = 68
_FLOAT = 4  # bytes
# Of the heads with shoulders that preset small makes: 11,675 vertices in cells of 0.0612 head lengths.
_VERTICES_TIMES_CELL = 11_675 * 0.0612**2
# And of their mean surface, the shares within reach of expressions, and wholly so (`region_far`, `region_near`).
_REACHED, _GOVERNED = 0.130, 0.097
_BACKWARD = 3.0  # a step's arithmetic over its forward pass's
_SPLATS_A_PIXEL = 60  # whose alpha counts; of 100,000 splats of a head at 512 pixels, about


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is rented, as its user states it."""

    devices: int
    hosts: int
    memory_gb: float  # of a device
    tflops: float  # of a device, at the precision that the run computes in
    utilization: float  # the share of that which a step reaches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The footage, as its user states it, and bytes a frame or a picture of its files."""

    identities: int
    frames: int  # of each identity
    views: int  # of each frame
    files: FileSizes

    @property
    def pictures(self) -> int:
        """Of all views."""
        return self.identities * self.frames * self.views


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSizes:
    """Mean bytes: of a view with image, mask, camera, face and non-face image; and of what a frame has once."""

    view: float
    frame: float
    how: str  # "measured" or "estimated"
    note: str


def estimated_files(size: int) -> FileSizes:
    """From JPEG and PNG files of synthetic heads at 256 pixels: bytes a pixel fall a little at larger sizes."""
    pixels = size * size
    # Image, mask, the crops of the 60 % of views that show the face; four expression images a frame, params, landmarks.
    view = pixels * (0.35 + 0.04 + 0.6 * (0.11 + 0.21)) + 606
    return FileSizes(
        view=view, frame=4 * 0.133 * pixels + 3242, how="estimated", note="synthetic heads, JPEG 97 4:4:4"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The abstract state and step of one stage, and one device's share of a batch."""

    stage: Stage
    options: StageSettings
    graphdef: Any
    state: TrainState  # of shapes
    points: int
    optimizer: Any


def number(value: float, how: str, unit: str = "", note: str = "") -> dict[str, Any]:
    """A value with its origin."""
    full = {"value": value, "how": how, "unit": unit, "note": note}
    return {key: item for key, item in full.items() if item != ""}


def plan(
    settings: Settings, cluster: Cluster, corpus: Corpus, *, compile_steps: bool = True
) -> dict[str, Any]:
    """The whole plan as JSON; `warnings` lists what does not fit."""
    warnings = _divisions(settings, cluster)
    # One process's devices stand for all: only their number matters.
    fsdp = settings.fsdp if cluster.devices % settings.fsdp == 0 else 1
    mesh = AbstractMesh(
        (cluster.devices // fsdp, fsdp), BATCH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    stages: dict[str, Any] = {}
    for stage, options in _stages(settings):
        staged = abstract_stage(stage, options, settings, corpus)
        stages[stage.name] = _stage(staged, settings, cluster, corpus, mesh, compile_steps)
        memory = stages[stage.name]["memory_per_device"]
        total, limit = memory["total"]["value"], 1e9 * cluster.memory_gb
        if total > limit:
            warnings.append(
                f"{stage.name} needs {total / 1e9:.1f} GB on a device that has {cluster.memory_gb:g}: raise fsdp, "
                f"spread {stage.name}.identities over more devices, or make fewer views or splats"
            )
    data = _data(corpus, cluster, stages)
    return {
        "config": f"{settings.name}:{settings.preset}",
        "legend": " ".join((__doc__ or "").split("\n\n")[1].split()),
        "cluster": {
            field.name: number(getattr(cluster, field.name), "stated")
            for field in dataclasses.fields(cluster)
        },
        "corpus": {key: number(getattr(corpus, key), "stated") for key in ("identities", "frames", "views")},
        "stages": stages,
        "hours": number(
            sum(stage["hours"]["value"] for stage in stages.values()), "estimated", "hours", "all stages"
        ),
        "data": data,
        "warnings": warnings,
    }


def abstract_stage(stage: Stage, options: StageSettings, settings: Settings, corpus: Corpus) -> StagePlan:
    """A stage's model and optimizer as shapes, without a number in them."""
    points = surface_vertices(settings)
    if stage is GAUSSIANS:
        points = settings.gaussian.num_splats or points
    reach, governed = _regions(settings, points)
    meta = {
        "settings": dataclasses.asdict(settings),
        "identities": [str(row) for row in range(corpus.identities)],
        "num_frames": corpus.identities * corpus.frames,
        "num_landmarks": LANDMARKS,
        "num_splats": points,
        "regions": {"expression_end": reach, "motion_start": governed},
    }
    optimizer = adam(options.rates, options.schedule, steps=options.steps)
    model = nnx.eval_shape(lambda: rebuild(stage, meta))
    graphdef, params, fixed = split_model(model)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),  # type: ignore[arg-type]
        params=params,
        fixed=fixed,
        optimizer=jax.eval_shape(optimizer.init, params),
    )
    return StagePlan(
        stage=stage, options=options, graphdef=graphdef, state=state, points=points, optimizer=optimizer
    )


def surface_vertices(settings: Settings) -> int:
    """About how many vertices the mean mesh has: as many a cell of its grid's surface as in preset small."""
    guide = settings.guide
    cells = (np.array(guide.box_max) - np.array(guide.box_min)) / np.array(guide.resolution)
    return min(round(_VERTICES_TIMES_CELL / float(np.prod(cells)) ** (2 / 3)), guide.max_vertices)


def batch_shapes(options: StageSettings, settings: Settings, identities: int) -> Batch:
    """The shapes of a batch of so many identities."""
    data = settings.data
    lead = (identities, options.frames, options.views)

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    return Batch(
        identity=shape(identities, dtype=jnp.int32),
        frame=shape(*lead[:2], dtype=jnp.int32),
        camera=Camera(world_to_camera=shape(*lead, 4, 4), intrinsics=shape(*lead, 3, 3)),
        image=shape(*lead, data.image_size, data.image_size, 3),
        mask=shape(*lead, data.image_size, data.image_size),
        recorded=shape(*lead, 4),
        pose=Pose(rotation=shape(*lead[:2], 3), translation=shape(*lead[:2], 3), scale=shape(*lead[:2])),
        landmarks=shape(*lead[:2], LANDMARKS, 3),
        face_image=shape(*lead[:2], data.face_size, data.face_size, 3),
        nonface_image=shape(*lead[:2], data.nonface_size, data.nonface_size, 3),
    )


def _stages(settings: Settings) -> list[tuple[Stage, StageSettings]]:
    both = [(GUIDE, settings.stage1), (GAUSSIANS, settings.stage2)]
    return both if settings.gaussian_stage else both[:1]


def _divisions(settings: Settings, cluster: Cluster) -> list[str]:
    """What does not divide, as `train.py` would refuse it."""
    found = []
    if cluster.devices % cluster.hosts:
        found.append(f"{cluster.devices} devices do not divide over {cluster.hosts} hosts")
    if cluster.devices % settings.fsdp:
        found.append(f"config.fsdp={settings.fsdp} does not divide {cluster.devices} devices: planned with 1")
    for stage, options in _stages(settings):
        if options.identities % cluster.devices:
            found.append(
                f"config.{stage.name}.identities={options.identities} does not divide over {cluster.devices} devices: "
                f"make it a multiple of {cluster.devices}; planned with {_share(options, cluster)} a device"
            )
    return found


def _share(options: StageSettings, cluster: Cluster) -> int:
    """Identities of a batch on one device."""
    return math.ceil(options.identities / cluster.devices)


def _regions(settings: Settings, points: int) -> tuple[int, int]:
    density = settings.gaussian.face_density if settings.gaussian.num_splats else 1.0

    def dense(share: float) -> int:
        return round(points * density * share / (1.0 + (density - 1.0) * share))

    return dense(_REACHED), dense(_GOVERNED)


def _stage(
    staged: StagePlan,
    settings: Settings,
    cluster: Cluster,
    corpus: Corpus,
    mesh: AbstractMesh,
    compile_steps: bool,
) -> dict[str, Any]:
    options, share = staged.options, _share(staged.options, cluster)
    arrays = _arrays(staged.state, mesh)
    per_device: dict[str, float] = {}
    for row in arrays:
        per_device[row["part"]] = per_device.get(row["part"], 0) + row["bytes_per_device"]
    groups: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(staged.state.params):
        groups[group_of(path)] = groups.get(group_of(path), 0) + math.prod(leaf.shape)
    parameters = sum(groups.values())
    batch = batch_shapes(options, settings, share)
    asked = _xla(staged, settings, batch, compile_steps)
    activations = _activations(staged, settings, share)
    temporary = asked.get(
        "temporary", number(activations, "estimated", "bytes", "hidden layers, pictures, gradients")
    )
    memory = {
        "weights": number(per_device["weights"], "counted", "bytes"),
        "optimizer": number(per_device["optimizer"], "counted", "bytes", "Adam's two moments"),
        "batch": number(_bytes(batch), "counted", "bytes"),
        "activations": temporary,
        "activations_formula": number(
            activations, "estimated", "bytes", "hidden layers, pictures, gradients"
        ),
    }
    total = sum(memory[part]["value"] for part in ("weights", "optimizer", "batch", "activations"))
    memory["total"] = number(total, temporary["how"], "bytes")
    flops, splatting = asked["flops"], _splatting(staged, settings, share)
    seconds = (flops["value"] + splatting) / (1e12 * cluster.tflops * cluster.utilization)
    pictures = share * cluster.devices * options.frames * options.views
    gradients = 2 * _FLOAT * parameters * (cluster.devices - 1) / cluster.devices
    return {
        "points": number(
            staged.points,
            "counted" if staged.stage is GAUSSIANS and settings.gaussian.num_splats else "estimated",
            "",
            "vertices of the mean mesh, by the grid's cells" if staged.stage is GUIDE else "splats",
        ),
        "parameters": {
            "total": number(parameters, "counted"),
            **{k: number(v, "counted") for k, v in groups.items()},
        },
        "batch": {
            "identities": number(share * cluster.devices, "counted"),
            "identities_per_device": number(share, "counted"),
            "pictures": number(pictures, "counted"),
        },
        "memory_per_device": memory,
        "fits": bool(total <= 1e9 * cluster.memory_gb),
        "flops_per_step_and_device": {
            "networks": flops,
            "rasterizer": number(splatting, "estimated", "", f"{_SPLATS_A_PIXEL} primitives a pixel"),
        },
        "sent_per_step_and_device": number(gradients, "estimated", "bytes", "the gradients' all-reduce"),
        "seconds_per_step": number(seconds, "estimated", "s", "arithmetic over the stated throughput"),
        "steps": number(options.steps, "counted"),
        "hours": number(seconds * options.steps / 3600, "estimated", "hours"),
        "arrays": arrays,
    }


def _arrays(state: TrainState, mesh: AbstractMesh) -> list[dict[str, Any]]:
    """Every array of the state: where it lies."""
    rows = []
    places = jax.tree.leaves(state_sharding(mesh, state))
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(state), places, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        divided = next((axis for axis, names in enumerate(place.spec) if names), None)
        rows.append(
            {
                "name": name,
                "part": "optimizer" if name.startswith(("optimizer", "step")) else "weights",
                "shape": list(leaf.shape),
                "dtype": str(leaf.dtype),
                "placed": "on every device" if divided is None else f"axis {divided} over fsdp",
                "bytes_per_device": math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
            }
        )
    return rows


def _xla(
    staged: StagePlan, settings: Settings, batch: Batch, compile_steps: bool
) -> dict[str, dict[str, Any]]:
    """What XLA says of one device's step: its arithmetic, and (compiled) the memory beyond its arguments."""
    options = staged.options
    context = StepContext(weights=options.losses, backend=settings.backend)
    step = make_step(staged.graphdef, staged.optimizer, staged.stage.losses, context, seed=settings.seed)
    perceptual = None
    if options.losses.perceptual:
        perceptual = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load_lpips("vgg"))
    lowered = jax.jit(step, donate_argnums=0).lower(staged.state, batch, perceptual)
    costs: Mapping[str, float] = lowered.cost_analysis() or {}
    note = "of the lowered program; native kernels count nothing"
    found = {"flops": number(float(costs.get("flops", math.nan)), "compiled", "", note)}
    if compile_steps:
        memory: Any = lowered.compile().memory_analysis()
        note = "XLA's buffers on a CPU; another device's may differ"
        found["temporary"] = number(float(memory.temp_size_in_bytes), "compiled", "bytes", note)
    return found


def _activations(staged: StagePlan, settings: Settings, identities: int) -> float:
    """What the backward pass needs of the forward one, every hidden layer once and the pictures' feature maps; and the
    gradients."""
    options, networks, points = staged.options, settings.networks, staged.points
    reach, governed = _regions(settings, points)
    frames = identities * options.frames
    neutral = networks.injection_depth + 3 * networks.depth
    moving = networks.depth * ((reach + points - governed) if staged.stage is GAUSSIANS else 2 * points)
    hidden = networks.width * (identities * points * neutral + frames * moving)
    w0, w1, w2 = networks.refine_widths
    pixel = NUM_CHANNELS * 3 + (2 * w0 + (2 * w1) / 4 + w2 / 16) / networks.refine_patch**2
    pictures = frames * options.views * settings.data.image_size**2 * pixel
    return _FLOAT * (hidden + pictures) + _bytes(staged.state.params)


def _splatting(staged: StagePlan, settings: Settings, identities: int) -> float:
    """Rasterizing: about 20 operations for each alpha and two for each channel, of some primitives a pixel."""
    options = staged.options
    pictures = identities * options.frames * options.views
    primitives = _SPLATS_A_PIXEL if staged.stage is GAUSSIANS else 1
    return _BACKWARD * pictures * settings.data.image_size**2 * primitives * (20 + 2 * NUM_CHANNELS)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _data(corpus: Corpus, cluster: Cluster, stages: Mapping[str, Any]) -> dict[str, Any]:
    files = corpus.files
    disk = corpus.pictures * files.view + corpus.identities * corpus.frames * files.frame
    rates = {
        name: stage["batch"]["pictures"]["value"] / stage["seconds_per_step"]["value"]
        for name, stage in stages.items()
    }
    fastest = max(rates.values())
    return {
        "pictures": number(corpus.pictures, "counted"),
        "bytes_on_disk": number(disk, files.how, "bytes", files.note),
        "bytes_of_a_view": number(files.view, files.how, "bytes", files.note),
        "pictures_per_second": {
            name: number(rate, "estimated", "1/s", "all devices") for name, rate in rates.items()
        },
        "read_rate_per_host": number(
            fastest * files.view / cluster.hosts, "estimated", "bytes/s", "the faster stage, nothing cached"
        ),
    }
