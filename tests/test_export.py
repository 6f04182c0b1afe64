"""Exported files, read back by readers written here from the formats' specifications, and drawn again."""

import dataclasses
import gzip
import json
import pathlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from absl import flags
from prior_fixture import SETTINGS, make_prior, save_prior, toy_spec
from tiny_models import GUIDE

from gphm_jax import Avatar
from gphm_jax.avatar import Habits
from gphm_jax.avatar_model import bake
from gphm_jax.errors import InputError
from gphm_jax.export import expressions, gltf, ply, spz, surface
from gphm_jax.export.cloud import SplatCloud, cloud, clouds
from gphm_jax.export.coarse import CoarseStatement, coarse_statement
from gphm_jax.files import write_image
from gphm_jax.guide import ellipsoid_mesh
from gphm_jax.metrics import psnr
from gphm_jax.optim import Rates, Schedule, adam
from gphm_jax.render import render_splats
from gphm_jax.stages import Subject, build_guide, describe
from gphm_jax.state import Checkpoints, create_state
from gphm_jax.tools import export as tool
from gphm_jax.types import Camera, Splats

CAMERA = Camera(
    world_to_camera=jnp.asarray([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]]),
    intrinsics=jnp.asarray([[58.0, 0, 16], [0, 58, 16], [0, 0, 1]]),
)
STATEMENT = CoarseStatement(
    cost="0.10 dB", cost_db=0.1, licence="CC0", date="2026-01-01", generator="gphm_jax test"
)


@pytest.fixture(scope="module")
def avatar():
    prior, _ = make_prior()
    spec = toy_spec(prior)
    model = bake(prior, prior.subjects.codes[...][1], spec, seed=0)
    codes = np.random.default_rng(1).standard_normal((2, spec.networks.expression_dim)).astype(np.float32)
    return Avatar(
        model, spec, Habits(expression=jnp.asarray(codes[0]), motion=jnp.asarray(codes[1]), camera=CAMERA)
    )


@pytest.fixture(scope="module")
def frames(avatar):
    codes = jnp.stack([avatar.habits.expression, avatar.habits.motion, -avatar.habits.motion])
    return list(clouds(avatar, codes))


@pytest.fixture(scope="module")
def coarse(avatar):
    """What every file is to show."""
    picture = np.asarray(avatar.draw(avatar.habits.expression).coarse)
    assert picture.std() > 0.05
    return picture


def drawn(splats: SplatCloud, camera: Camera = CAMERA) -> np.ndarray:
    """A picture of splats by the project's own renderer."""

    def one(x):
        return jnp.asarray(x, jnp.float32)[None, None]

    image, _ = render_splats(
        Splats(
            means=one(splats.means), quats=one(splats.quats), scales=one(splats.scales),
            opacities=one(splats.opacities), features=one(splats.colors),
        ),
        Camera(world_to_camera=one(camera.world_to_camera)[:, :, None], intrinsics=one(camera.intrinsics)[:, :, None]),
        height=32,
        width=32,
    )  # fmt: skip
    return np.asarray(image[0, 0, 0])


def read_ply(data: bytes) -> tuple[np.ndarray, list[str]]:
    """A second hand: the vertices of a binary PLY by the names in its header, and its comments."""
    head, body = data.split(b"end_header\n", 1)
    lines = head.decode("ascii").split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "<f4", "uchar": "u1"}
    names = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    rows = np.frombuffer(body, np.dtype(names))
    assert len(rows) == count
    return rows, [line.removeprefix("comment ") for line in lines if line.startswith("comment")]


def from_ply(rows: np.ndarray) -> SplatCloud:
    """Splats as a viewer takes them from the trainer's attributes."""

    def columns(*names):
        return np.stack([rows[name] for name in names], axis=-1)

    return SplatCloud(
        means=columns("x", "y", "z"),
        quats=columns("rot_0", "rot_1", "rot_2", "rot_3"),
        scales=np.exp(columns("scale_0", "scale_1", "scale_2")),
        opacities=1 / (1 + np.exp(-rows["opacity"])),
        colors=0.5 + 0.28209479 * columns("f_dc_0", "f_dc_1", "f_dc_2"),
    )


def read_spz(data: bytes) -> SplatCloud:
    """A decoder of SPZ version 3 by its specification."""
    raw = gzip.decompress(data)
    magic, version, n, degree, bits, flag, reserved = struct.unpack("<IIIBBBB", raw[:16])
    assert (magic, version, degree, flag, reserved) == (0x5053474E, 3, 0, 0, 0) and len(raw) == 16 + 20 * n
    parts = np.split(np.frombuffer(raw, np.uint8, offset=16), np.cumsum([9 * n, n, 3 * n, 3 * n]))
    p = parts[0].reshape(n, 3, 3).astype(np.int64) @ [1, 256, 65536]
    p = np.where(p >= 2**23, p - 2**24, p)
    quats = np.zeros((n, 4))
    for row, word in enumerate(parts[4].view("<u4")):
        word = int(word)
        largest, rest = word >> 30, [k for k in range(4) if k != word >> 30]
        for k in reversed(rest):
            quats[row, k] = (word & 511) / 511 / np.sqrt(2) * (-1 if word >> 9 & 1 else 1)
            word >>= 10
        quats[row, largest] = np.sqrt(max(0.0, 1 - np.sum(quats[row] ** 2)))
    return SplatCloud(
        means=(p / 2.0**bits).astype(np.float32),
        quats=np.roll(quats, 1, axis=1).astype(np.float32),
        scales=np.exp(parts[3].reshape(n, 3) / 16 - 10).astype(np.float32),
        opacities=(parts[1] / 255).astype(np.float32),
        colors=(0.5 + 0.28209479 * (parts[2].reshape(n, 3) / 255 - 0.5) / 0.15).astype(np.float32),
    )


def read_glb(data: bytes) -> tuple[dict, dict[int, np.ndarray]]:
    """The document of a .glb and its accessors' values, with everything checked that core glTF asks of them."""
    assert struct.unpack("<4sII", data[:12]) == (b"glTF", 2, len(data))
    length, kind = struct.unpack("<I4s", data[12:20])
    document, rest = json.loads(data[20 : 20 + length]), data[20 + length :]
    size, tag = struct.unpack("<I4s", rest[:8])
    binary = rest[8:]
    assert (kind, tag) == (b"JSON", b"BIN\0") and length % 4 == size % 4 == 0
    assert size == len(binary) == document["buffers"][0]["byteLength"]
    widths, types = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}, {5121: "u1", 5125: "<u4", 5126: "<f4"}
    values = {}
    for index, accessor in enumerate(document["accessors"]):
        view, width = document["bufferViews"][accessor["bufferView"]], widths[accessor["type"]]
        kind = np.dtype(types[accessor["componentType"]])
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= size
        assert view["byteLength"] == accessor["count"] * width * kind.itemsize
        array = np.frombuffer(binary, kind, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)
        assert np.isfinite(array).all()
        if "min" in accessor:
            np.testing.assert_array_equal(array.min(axis=0), np.float32(accessor["min"]))
            np.testing.assert_array_equal(array.max(axis=0), np.float32(accessor["max"]))
        values[index] = array
    return document, values


def test_a_splat_ply_is_drawn_as_the_avatar_is(frames, coarse):
    rows, comments = read_ply(ply.splats(frames[0], STATEMENT.lines))
    assert rows.dtype.names == (
        "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity",
        "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
    )  # fmt: skip
    np.testing.assert_allclose(drawn(from_ply(rows)), coarse, atol=2e-5)
    assert "licence: CC0" in comments and any("refine network out: 0.10 dB" in line for line in comments)


def test_half_a_turn_takes_the_camera_along(frames, coarse):
    rows, _ = read_ply(ply.splats(frames[0].y_down(), ()))
    assert np.abs(drawn(from_ply(rows)) - coarse).max() > 0.05
    turn = jnp.asarray(np.diag([1.0, -1.0, -1.0, 1.0]), jnp.float32)
    turned = Camera(world_to_camera=CAMERA.world_to_camera @ turn, intrinsics=CAMERA.intrinsics)
    np.testing.assert_allclose(drawn(from_ply(rows), turned), coarse, atol=1e-4)


def test_spz_is_read_back_within_its_steps(frames, coarse):
    first = frames[0]
    read = read_spz(spz.splats(first))
    np.testing.assert_allclose(read.means, first.means, atol=0.5 / 4096 + 1e-6)
    np.testing.assert_allclose(np.log(read.scales), first.log_scales, atol=0.5 / 16 + 1e-5)
    np.testing.assert_allclose(read.opacities, first.opacities, atol=0.5 / 255 + 1e-6)
    assert (np.abs(np.sum(read.quats * first.quats, axis=1)) > 1 - 1e-5).all()
    assert psnr(drawn(read), coarse) > 35
    assert spz.splats(first) == spz.splats(first)


def test_every_turn_survives_spz():
    quats = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    quats[:4] = np.eye(4)
    one = np.ones((len(quats), 3), np.float32)
    read = read_spz(
        spz.splats(SplatCloud(means=-one, quats=quats, scales=one, opacities=one[:, 0], colors=one))
    )
    assert set(np.argmax(np.abs(quats), axis=1)) == {0, 1, 2, 3}
    assert (np.abs(np.sum(read.quats * quats, axis=1)) > 1 - 1e-5).all()
    np.testing.assert_array_equal(read.means, -one)


def test_splats_in_gltf_follow_the_extension(frames, coarse, tmp_path):
    data = gltf.splats(frames[:1], STATEMENT, fps=10)
    document, values = read_glb(data)
    (primitive,) = document["meshes"][0]["primitives"]
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"] and primitive["mode"] == 0
    assert primitive["extensions"] == {
        "KHR_gaussian_splatting": {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    }
    prefix, at = "KHR_gaussian_splatting:", primitive["attributes"]
    accessors = {name: document["accessors"][index] for name, index in at.items()}
    kinds = {name: (a["type"], a["componentType"]) for name, a in accessors.items()}
    assert kinds == {
        "POSITION": ("VEC3", 5126), "COLOR_0": ("VEC4", 5121), f"{prefix}ROTATION": ("VEC4", 5126),
        f"{prefix}SCALE": ("VEC3", 5126), f"{prefix}OPACITY": ("SCALAR", 5126),
        f"{prefix}SH_DEGREE_0_COEF_0": ("VEC3", 5126),
    }  # fmt: skip
    read = SplatCloud(
        means=values[at["POSITION"]],
        quats=np.roll(values[at[f"{prefix}ROTATION"]], 1, axis=1),
        scales=values[at[f"{prefix}SCALE"]],
        opacities=values[at[f"{prefix}OPACITY"]][:, 0],
        colors=0.5 + 0.28209479 * values[at[f"{prefix}SH_DEGREE_0_COEF_0"]],
    )
    np.testing.assert_allclose(drawn(read), coarse, atol=2e-5)
    extras = document["asset"]["extras"]
    assert extras["synthetic"] is True and extras["refineNetworkCostDb"] == 0.1
    (tmp_path / "head.glb").write_bytes(data)
    scene = trimesh.load_scene(tmp_path / "head.glb")
    (points,) = scene.geometry.values()
    np.testing.assert_allclose(points.vertices, frames[0].means, atol=1e-6)


def test_a_sequence_in_gltf_moves_the_splats(frames):
    document, values = read_glb(gltf.splats(frames, STATEMENT, fps=4))
    (primitive,) = document["meshes"][0]["primitives"]
    base = values[primitive["attributes"]["POSITION"]]
    for target, frame in zip(primitive["targets"], frames[1:], strict=True):
        np.testing.assert_allclose(base + values[target["POSITION"]], frame.means, atol=1e-6)
    sampler = document["animations"][0]["samplers"][0]
    np.testing.assert_allclose(values[sampler["input"]][:, 0], [0, 0.25, 0.5])
    np.testing.assert_array_equal(values[sampler["output"]].reshape(3, 2), [[0, 0], [1, 0], [0, 1]])
    assert document["animations"][0]["channels"][0]["target"] == {"node": 0, "path": "weights"}


def test_points_leave_out_what_nobody_sees(frames, tmp_path):
    half = dataclasses.replace(frames[0], opacities=np.where(np.arange(300) % 2, 0.9, 0.01))
    data = ply.points(half, STATEMENT.lines)
    rows, _ = read_ply(data)
    np.testing.assert_array_equal(rows["y"], half.means[1::2, 1])
    assert len(np.unique(rows["red"])) > 20
    (tmp_path / "p.ply").write_bytes(data)
    assert trimesh.load(tmp_path / "p.ply").colors.shape == (150, 4)


def test_a_mesh_goes_where_the_splats_went(frames):
    vertices, triangles = ellipsoid_mesh(np.zeros(3), np.full(3, 0.5), subdivisions=3)
    points = vertices[np.random.default_rng(0).permutation(len(vertices))[:300]]
    points = np.concatenate([points, 0.8 * points])
    head = surface.MeanHead(points=points, vertices=vertices, faces=triangles)
    # A blue ball, a red one inside it, and all of it moved.
    two = SplatCloud(
        means=(points + [0, 1, 0]).astype(np.float32),
        quats=np.tile(frames[0].quats, (2, 1)),
        scales=np.full((600, 3), 0.1, np.float32),
        opacities=np.full(600, 0.99, np.float32),
        colors=np.repeat(np.float32([[0.2, 0.5, 1.0], [1.0, 0.2, 0.2]]), 300, axis=0),
    )
    moved = surface.surface(head, two)
    np.testing.assert_allclose(moved.vertices, vertices + [0, 1, 0], atol=1e-6)
    document, values = read_glb(gltf.mesh(moved, STATEMENT))
    primitive = document["meshes"][0]["primitives"][0]
    colors = values[primitive["attributes"]["COLOR_0"]]
    np.testing.assert_allclose(np.median(colors, axis=0), [0.033105, 0.214041, 1.0], atol=0.03)  # linear
    outwards = np.sum(moved.normals * (moved.vertices - [0, 1, 0]), axis=1)
    assert (outwards > 0.45).all()
    larger = surface.surface(head, dataclasses.replace(two, means=(1.5 * points).astype(np.float32)))
    radius = np.linalg.norm(larger.vertices, axis=1)
    assert radius.min() > 0.6 and radius.max() < 0.75  # smoothing flattens the field on so coarse a ball
    assert values[primitive["indices"]].max() == len(vertices) - 1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A training run with both stages, neither of them trained."""
    path = tmp_path_factory.mktemp("prior")
    save_prior(path)
    networks = dataclasses.replace(SETTINGS.networks, octaves=0)  # a smooth field has a simple surface
    settings = dataclasses.replace(SETTINGS, guide=GUIDE, networks=networks)
    subject = Subject(identities=("a",), num_frames=1, landmarks=np.zeros((5, 3), np.float32))
    guide = build_guide(settings, subject)
    _, state = create_state(guide, adam(Rates(), Schedule(), steps=1))
    checkpoints = Checkpoints(path / "checkpoints" / "stage1")
    checkpoints.save(state, describe(guide, settings, subject))
    checkpoints.close()
    return path


def test_a_mesh_comes_from_both_stages_of_the_avatars_prior(avatar, workdir):
    head = surface.mean_head(workdir, avatar)
    assert len(head.faces) > 50 and head.faces.max() == len(head.vertices) - 1
    np.testing.assert_array_equal(head.points, make_prior()[0].positions[...])


def test_a_mesh_of_another_prior_is_refused(avatar, workdir):
    stranger = avatar.model
    stranger.weight[...] = stranger.weight[...] * 0.5
    with pytest.raises(InputError, match="was not fitted with the prior"):
        surface.mean_head(workdir, Avatar(stranger, avatar.spec, avatar.habits))


def test_the_cost_comes_from_the_fit_or_is_measured(avatar, tmp_path):
    folder = tmp_path / "avatar"
    measured = coarse_statement(avatar, folder, "")
    assert measured.cost_db is None and "dB PSNR from the refined ones" in measured.cost
    assert "not stated" in measured.licence
    figures = {"train": {"psnr": 30.0, "psnr_coarse": 29.5}, "heldout": {"psnr": 28.5, "psnr_coarse": 28.25}}
    (tmp_path / "metrics.json").write_text(json.dumps(figures))
    known = coarse_statement(avatar, folder, "CC BY 4.0\nsecond line")
    assert known.cost_db == 0.25 and "held-out frames (28.50 dB with it, 28.25 without)" in known.cost
    assert "licence: CC BY 4.0 second line" in known.lines
    (tmp_path / "metrics.json").write_text(json.dumps({"heldout": {"psnr": 28.0, "psnr_coarse": 28.25}}))
    gained = coarse_statement(avatar, folder, "")
    assert gained.cost_db == -0.25 and gained.cost.startswith("sharpness, and no PSNR on held-out frames (28.00 dB")
    (tmp_path / "metrics.json").write_text(json.dumps({"train": {"psnr": 30.0}}))  # of an older fit
    assert coarse_statement(avatar, folder, "").cost_db is None


def faces(folder: pathlib.Path, count: int) -> np.ndarray:
    pictures = np.random.default_rng(0).integers(0, 255, (count, 16, 16, 3), np.uint8)
    for index, picture in enumerate(pictures):
        write_image(folder / f"{index}.png", picture)
    return pictures


def test_a_folder_of_faces_is_a_sequence(avatar, tmp_path):
    pictures = faces(tmp_path / "faces", 4)
    codes = expressions.encoded(avatar, tmp_path / "faces", 2)
    np.testing.assert_allclose(codes, avatar.encode(pictures[[0, 3]]), atol=1e-5)
    request = tool.Request(format="spz", out=tmp_path / "head.spz", expression=tmp_path / "faces", frames=2)
    written = tool.export(avatar, request, STATEMENT)
    assert [path.name for path in written] == [
        "head_0001.spz",
        "head_0001.spz.json",
        "head_0002.spz",
        "head_0002.spz.json",
    ]
    assert json.loads(written[1].read_text())["colour"].startswith("coarse")
    np.testing.assert_allclose(
        read_spz(written[2].read_bytes()).means, cloud(avatar.splats(codes[1])).means, atol=2e-4
    )
    for index in range(3):  # a prepared identity: the first face of each frame
        write_image(tmp_path / f"person/images/{index}/face_1.png", pictures[index])
        write_image(tmp_path / f"person/images/{index}/face_0.png", pictures[3])
    np.testing.assert_allclose(
        expressions.encoded(avatar, tmp_path / "person", 0), jnp.stack([codes[1]] * 3), atol=1e-5
    )
    with pytest.raises(InputError, match="no face image"):
        expressions.encoded(avatar, tmp_path / "nowhere", 0)


@pytest.fixture
def ask():
    """The tool's flags as a user sets them."""
    before = set(flags.FLAGS)
    tool.define_flags()
    mine = set(flags.FLAGS) - before

    def asked(**values):
        flags.FLAGS(["export", *(f"--{name}={value}" for name, value in values.items())])
        return tool.make_request()

    yield asked
    for name in mine:
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "ply"}, "--avatar is missing"),
        ({"avatar": "a", "format": "ply"}, "--out is missing"),
        ({"avatar": "a", "format": "spz", "out": "TMP/x.ply"}, r"ends in \.spz"),
        ({"avatar": "a", "format": "mesh", "out": "TMP/x.glb"}, "needs --prior"),
        ({"avatar": "a", "format": "ply", "out": "TMP/x.ply", "prior": "p"}, "--prior belongs to"),
        ({"avatar": "a", "format": "spz", "out": "TMP/x.spz", "axes": "y_up"}, "--axes belongs to"),
        ({"avatar": "a", "format": "ply", "out": "TMP/x.ply", "frames": 3}, "--frames needs"),
        ({"avatar": "a", "format": "html", "out": "TMP/x.html", "fps": 0}, "--fps"),
        ({"avatar": "a", "format": "ply", "out": "TMP/file/x.ply"}, "cannot write"),
        ({"avatar": "a", "format": "ply", "out": "TMP/dir.ply"}, "is a folder"),
    ],
)
def test_wrong_flags_are_named_before_any_work(ask, tmp_path, values, message):
    (tmp_path / "file").touch()
    (tmp_path / "dir.ply").mkdir()
    values = {name: str(value).replace("TMP", str(tmp_path)) for name, value in values.items()}
    with pytest.raises(InputError, match=message):
        ask(**values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir.ply", "file"]


def test_an_unknown_format_names_the_known(ask):
    with pytest.raises(flags.Error, match="ply|spz|gltf|html|points|mesh"):
        ask(avatar="a", format="obj", out="x.obj")


def test_what_was_checked_is_what_is_asked(ask, tmp_path):
    request = ask(avatar="a", format="ply", out=tmp_path / "new" / "x.ply", axes="y_up")
    assert request == tool.Request(format="ply", out=tmp_path / "new" / "x.ply", axes="y_up")
