"""The mesh ops by nvdiffrast (Laine et al. 2020), where a user has installed it and PyTorch sees a CUDA device.

A second implementation to compare with, reached through `jax.pure_callback`: arguments travel to the host, to
PyTorch's current device (at the time of tracing), and back. "auto" never picks it, and what it lacks (splats,
tetrahedra, networks) is left to the reference. JAX takes most of a GPU's memory at its start; where both share one,
set XLA_PYTHON_CLIENT_PREALLOCATE=false. Under a sharded `jit` a callback gathers its arguments on one device; inside
`shard_map` each device calls for its own part, and all of a process's calls share one PyTorch device.

Values are those of `gphm_kernels.mesh` but for what nvdiffrast decides by itself: to which face a pixel centre on, or
within its fixed-point precision of, an edge belongs, which of two faces at equal depth is seen, and at which edges
`antialias` blends. Gradients are sums of atomic additions: other bits in every run.

The callbacks take and return NumPy arrays and run no JAX inside, which could deadlock. All of them work in one thread:
XLA calls from many, and nothing says that several may use a rasterizer's context, of which each device has one.
"""

import functools
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from gphm_kernels.backends import primitives
from gphm_kernels.reference.mesh import MAX_POSITION

_OLDEST = (0, 3, 3)  # older ones ask for sides that are multiples of 8, and of 2048 pixels at most
_INSTALL = "install nvdiffrast 0.3.3 or newer from its repository (it is not on PyPI), with PyTorch for CUDA"
# Its row 0 is at y/w = -1 and ours at +1: the mesh is turned over, and the images need not be.
_TURN_OVER = np.array([1, -1, 1, 1], np.float32)
_OUT_OF_VIEW = np.array([2, 2, 2, 1], np.float32)  # a vertex beyond three sides of the view volume

_thread = ThreadPoolExecutor(1, "nvdiffrast")


class Gpu(NamedTuple):
    """What the callbacks work with."""

    torch: Any
    ops: Any  # nvdiffrast.torch
    device: str
    context: Any

    def tensor(self, array: np.ndarray) -> Any:
        """A copy on the device, contiguous and of the array's type."""
        return self.torch.tensor(np.ascontiguousarray(array), device=self.device)

    def gradients(self, outputs: tuple, inputs: tuple, cotangents: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """The cotangents of the inputs, on the host."""
        gradients = self.torch.autograd.grad(outputs, inputs, tuple(self.tensor(x) for x in cotangents))
        return [_numpy(x) for x in gradients]


def available() -> bool:
    """Whether nvdiffrast and PyTorch are installed and there is a CUDA device for them."""
    return not reason()


@functools.cache
def reason() -> str:
    """Why nvdiffrast cannot run here, in one line; empty if it can. The first call makes a rasterizer's context."""
    try:
        import nvdiffrast.torch  # noqa: F401
        import torch

        version = importlib.metadata.version("nvdiffrast")
        if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < _OLDEST:
            return f"nvdiffrast is {version}: {_INSTALL}"
        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} finds no CUDA device, which nvdiffrast needs"
        _thread.submit(_gpu, torch.cuda.current_device()).result()
    except ImportError as error:
        return f"{_one_line(error)}: {_INSTALL}"
    except (OSError, RuntimeError) as error:  # libraries that do not load, a compiler's or the driver's refusal
        return f"nvdiffrast does not start: {_one_line(error)}"
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@functools.cache
def _gpu(index: int) -> Gpu:
    import nvdiffrast.torch
    import torch

    device = f"cuda:{index}"
    return Gpu(torch, nvdiffrast.torch, device, nvdiffrast.torch.RasterizeCudaContext(device=device))


def _through_callback(describe: Callable[..., primitives.Primitive], run: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a primitive's arguments that computes it by `run`, which takes them as NumPy arrays."""

    @functools.wraps(describe)
    def compute(*arrays: Any, **options: Any) -> Any:
        if not available():  # here rather than on the host: an exception in a callback reaches the user as a long trace
            raise RuntimeError(f"nvdiffrast cannot run: {reason()}; or use backend='xla'")
        import torch

        primitive = describe(*arrays, **options)
        call = functools.partial(_call, run, torch.cuda.current_device(), primitive.attributes)
        return jax.pure_callback(call, primitive.results, *primitive.inputs, vmap_method="sequential")

    return compute


def _call(run: Callable[..., Any], device: int, options: dict[str, Any], *inputs: Any) -> Any:
    arrays = [np.asarray(x) for x in inputs]
    return _thread.submit(lambda: run(_gpu(device), *arrays, **options)).result()


def _numpy(tensor: Any) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _rasterize_fwd(gpu: Gpu, positions: np.ndarray, faces: np.ndarray, *, width: int, height: int) -> np.ndarray:
    raster = np.zeros((len(positions), height, width, 4), np.float32)
    for images, triangles in _drawn_faces(positions, faces):
        drawn = _draw(gpu, gpu.tensor(_clip(positions[images])), gpu.tensor(triangles), width, height)
        raster[images] = _numpy(drawn)
    return raster


def _rasterize_bwd(
    gpu: Gpu,
    positions: np.ndarray,
    faces: np.ndarray,
    raster: np.ndarray,
    d_raster: np.ndarray,
    *,
    width: int,
    height: int,
) -> np.ndarray:
    """The gradient through what nvdiffrast draws again: the raster that it made before."""
    d_positions = np.zeros_like(positions)
    for images, triangles in _drawn_faces(positions, faces):
        clip, triangles = gpu.tensor(_clip(positions[images])).requires_grad_(), gpu.tensor(triangles)
        drawn = _draw(gpu, clip, triangles, width, height)
        # nvdiffrast takes no gradient through z/w. It is the interpolated z over the interpolated w.
        corners, _ = gpu.ops.interpolate(clip, drawn, triangles)
        d_drawn = d_raster[images] * np.array([1, 1, 0, 0], np.float32)
        d_corners = _depth_cotangent(_numpy(corners), raster[images], d_raster[images])
        (d_clip,) = gpu.gradients((drawn, corners), (clip,), (d_drawn, d_corners))
        d_positions[images] = d_clip[:, :-1] * _TURN_OVER
    return d_positions


def _draw(gpu: Gpu, clip: Any, triangles: Any, width: int, height: int) -> Any:
    resolution = [height, width]
    return gpu.ops.rasterize(gpu.context, clip, triangles, resolution=resolution, grad_db=False)[0]


def _depth_cotangent(corners: np.ndarray, raster: np.ndarray, d_raster: np.ndarray) -> np.ndarray:
    """The cotangent of the interpolated (x, y, z, w) by that of the raster's z/w."""
    seen = (raster[..., 3] > 0) & (corners[..., 3] > 0)
    d_z = np.where(seen, d_raster[..., 2] / np.where(seen, corners[..., 3], 1), 0)
    zero = np.zeros_like(d_z)
    return np.stack([zero, zero, d_z, -d_z * raster[..., 2]], -1)


def _interpolate_fwd(gpu: Gpu, attributes: np.ndarray, raster: np.ndarray, faces: np.ndarray) -> np.ndarray:
    table, raster, triangles = (gpu.tensor(x) for x in _table(attributes, raster, faces))
    return _numpy(gpu.ops.interpolate(table, raster, triangles)[0])


def _interpolate_bwd(
    gpu: Gpu, attributes: np.ndarray, raster: np.ndarray, faces: np.ndarray, d_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    table, seen, triangles = (gpu.tensor(x) for x in _table(attributes, raster, faces))
    inputs = table.requires_grad_(), seen.requires_grad_()
    image, _ = gpu.ops.interpolate(*inputs, triangles)
    d_table, d_seen = gpu.gradients((image,), inputs, (d_image,))
    d_raster = np.zeros_like(raster)
    d_raster[..., :2] = d_seen[..., :2]
    return np.ascontiguousarray(d_table[:, :-1]), d_raster


def _antialias_fwd(
    gpu: Gpu, image: np.ndarray, raster: np.ndarray, positions: np.ndarray, faces: np.ndarray
) -> np.ndarray:
    mesh = (gpu.tensor(x) for x in _silhouettes(raster, positions, faces))
    return _numpy(gpu.ops.antialias(gpu.tensor(image), *mesh))


def _antialias_bwd(
    gpu: Gpu,
    image: np.ndarray,
    raster: np.ndarray,
    positions: np.ndarray,
    faces: np.ndarray,
    d_result: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    seen, clip, triangles = (gpu.tensor(x) for x in _silhouettes(raster, positions, faces))
    colours, clip = gpu.tensor(image).requires_grad_(), clip.requires_grad_()
    result = gpu.ops.antialias(colours, seen, clip, triangles)
    d_image, d_clip = gpu.gradients((result,), (colours, clip), (d_result,))
    return d_image, np.ascontiguousarray(d_clip[:, :-1] * _TURN_OVER)


# What nvdiffrast is given: every index leads somewhere, and every position is a number.


def _clip(positions: np.ndarray) -> np.ndarray:
    """Positions turned over, and one vertex more, which is out of view; so is what is not finite."""
    clip = np.where(_finite(positions)[..., None], positions * _TURN_OVER, _OUT_OF_VIEW)
    extra = np.broadcast_to(_OUT_OF_VIEW, (len(positions), 1, 4))
    return np.concatenate([clip, extra], 1)


def _finite(positions: np.ndarray) -> np.ndarray:
    return np.all(np.abs(positions) < MAX_POSITION, -1)


def _drawn_faces(positions: np.ndarray, faces: np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
    """Images that draw the same faces, usually all of them, and those faces; others lie out of view.

    nvdiffrast takes the same triangles for all images of a call, and an image skips faces whose positions there are
    not finite.
    """
    finite = np.append(_finite(positions), np.ones((len(positions), 1), bool), 1)
    triangles = _drawable(faces, positions.shape[1])
    drawn = np.all(finite[:, triangles], -1)
    groups: dict[bytes, list[int]] = {}
    for image, flags in enumerate(drawn):
        groups.setdefault(flags.tobytes(), []).append(image)
    for images in groups.values():
        yield images, np.where(drawn[images[0], :, None], triangles, np.int32(positions.shape[1]))


def _drawable(faces: np.ndarray, vertices: int) -> np.ndarray:
    """The faces; padding is moved to the vertex out of view, where it is nobody's neighbour either."""
    a, b, c = faces.T
    distinct = (a != b) & (b != c) & (c != a)
    usable = distinct & np.all((faces >= 0) & (faces < vertices), -1)
    return np.where(usable[:, None], faces, np.int32(vertices))


def _seen(raster: np.ndarray, faces: int) -> np.ndarray:
    """The raster with whole face numbers from 0 to the last."""
    index = raster[..., 3]
    index = np.where(index >= 1, np.floor(np.minimum(index, np.float32(faces))), np.float32(0))
    return np.concatenate([raster[..., :3], index[..., None]], -1)


def _table(attributes: np.ndarray, raster: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, ...]:
    """Attributes with a row of zeros, which is that of vertices out of range; the raster; faces."""
    batch, vertices, channels = attributes.shape
    table = np.concatenate([attributes, np.zeros((batch, 1, channels), np.float32)], 1)
    known = (faces >= 0) & (faces < vertices)
    return table, _seen(raster, len(faces)), np.where(known, faces, np.int32(vertices))


def _silhouettes(raster: np.ndarray, positions: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, ...]:
    return _seen(raster, len(faces)), _clip(positions), _drawable(faces, positions.shape[1])


rasterize_fwd = _through_callback(primitives.rasterize_fwd, _rasterize_fwd)
rasterize_bwd = _through_callback(primitives.rasterize_bwd, _rasterize_bwd)
interpolate_fwd = _through_callback(primitives.interpolate_fwd, _interpolate_fwd)
interpolate_bwd = _through_callback(primitives.interpolate_bwd, _interpolate_bwd)
antialias_fwd = _through_callback(primitives.antialias_fwd, _antialias_fwd)
antialias_bwd = _through_callback(primitives.antialias_bwd, _antialias_bwd)
