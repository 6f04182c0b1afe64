"""Other people's rasterizers behind one signature, for `bench.py`; each is left out where it is not installed."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from bench_scenes import SplatScene

from gphm_kernels.reference.projection import project_fwd as project

Run = Callable[[], Any]  # returns when the result is there


class Unavailable(Exception):
    """Why a peer cannot run here, in one line."""


def cpp_peer(folder: str, scene: SplatScene) -> tuple[Run, Run]:
    """The rasterizer of `folder`/gs.py (32 channels, CPU), after the same projection: forward, forward and backward."""
    if not (pathlib.Path(folder) / "gs.py").is_file():
        raise Unavailable(f"no gs.py in {folder}")
    if scene.arrays["features"].shape[1] != 32:
        raise Unavailable("it has 32 channels only")
    sys.path.insert(0, folder)
    try:
        gs = importlib.import_module("gs")
    except OSError as error:
        raise Unavailable(f"{error}: run its build.sh first") from error
    finally:
        sys.path.remove(folder)

    def draw(arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        batch = {name: x[None] for name, x in arrays.items()}
        means2d, conics, opacities, depths = (x[0] for x in project(**batch, near=0.01, far=100.0, eps2d=0.3))
        return gs.raster(scene.size, scene.size, means2d, conics, arrays["features"], opacities, depths)

    return jax_runs(draw, scene.arrays)


def jax_runs(draw: Callable[[dict[str, jax.Array]], Any], arrays: dict[str, jax.Array]) -> tuple[Run, Run]:
    """Forward, and forward with backward to every array, of a JAX function whose outputs get random cotangents."""
    forward = jax.jit(draw)
    keys = iter(jax.random.split(jax.random.key(1), 8))
    shapes = jax.eval_shape(draw, arrays)
    cotangents = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape, x.dtype), shapes)

    @jax.jit
    def both(arrays: dict[str, jax.Array]) -> Any:
        outputs, pullback = jax.vjp(draw, arrays)
        return outputs, pullback(cotangents)

    return lambda: jax.block_until_ready(forward(arrays)), lambda: jax.block_until_ready(both(arrays))


def torch_tiles(scene: SplatScene) -> tuple[Run, Run]:
    """A loop over tiles in PyTorch, differentiated by autograd: what a paper's first prototype looks like."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise Unavailable("PyTorch is not installed") from error
    tile = 16
    if scene.size % tile:
        raise Unavailable(f"it takes sizes divisible by {tile}")
    side = scene.size // tile
    p = project(**{name: x[None] for name, x in scene.arrays.items()}, near=0.01, far=100.0, eps2d=0.3)
    means, conics, opacities, depths = (np.asarray(x[0]) for x in p)
    features = np.asarray(scene.arrays["features"])
    lists = _tile_lists(means, conics, opacities, depths, tile, side)
    inputs = [torch.tensor(x, requires_grad=True) for x in (means, conics, opacities, features)]
    offsets = torch.arange(tile) + 0.5
    x, y = offsets.repeat(tile)[:, None], offsets.repeat_interleave(tile)[:, None]

    def draw() -> tuple[Any, Any]:
        images, alphas = [], []
        for n, rows in enumerate(lists):
            mean, conic, opacity, feature = (v[rows] for v in inputs)
            dx, dy = x + n % side * tile - mean[:, 0], y + n // side * tile - mean[:, 1]
            sigma = 0.5 * (conic[:, 0] * dx * dx + conic[:, 2] * dy * dy) + conic[:, 1] * dx * dy
            alpha = (opacity * torch.exp(-sigma)).clamp(max=0.99)
            alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
            log = torch.cumsum(torch.log1p(-alpha), dim=1)
            weight = alpha * torch.exp(log) / (1 - alpha)
            images.append(weight @ feature)
            alphas.append(1 - torch.exp(log[:, -1]) if len(rows) else torch.zeros(tile * tile))
        return torch.stack(images), torch.stack(alphas)

    def forward() -> None:
        with torch.no_grad():
            draw()

    def both() -> None:
        image, alpha = draw()
        (image.sum() + alpha.sum()).backward()

    return forward, both


def _tile_lists(
    means: np.ndarray, conics: np.ndarray, opacities: np.ndarray, depths: np.ndarray, tile: int, side: int
) -> list[np.ndarray]:
    """Per tile the splats whose bounding box touches it, front to back. Made once: its time is not the peer's."""
    a, b, c = conics.T
    reach = np.sqrt(np.maximum(2.0 * np.log(np.maximum(opacities, 1e-9) * 255.0), 0.0) / (a * c - b * b))
    half = np.stack([reach * np.sqrt(c), reach * np.sqrt(a)], axis=1)
    low = np.clip(np.floor((means - half) / tile), 0, side).astype(int)
    high = np.clip(np.floor((means + half) / tile), -1, side - 1).astype(int)
    lists: list[list[int]] = [[] for _ in range(side * side)]
    for row in np.argsort(depths, kind="stable"):
        if opacities[row] >= 1 / 255:
            for v in range(low[row, 1], high[row, 1] + 1):
                for u in range(low[row, 0], high[row, 0] + 1):
                    lists[v * side + u].append(row)
    return [np.asarray(rows, np.int64) for rows in lists]


def gsplat_peer(scene: SplatScene) -> tuple[Run, Run]:
    """gsplat's `rasterization` on this machine's CUDA device; the whole of it, projection and sort included."""
    try:
        torch, gsplat = importlib.import_module("torch"), importlib.import_module("gsplat")
    except ImportError as error:
        raise Unavailable("gsplat is not installed") from error
    if not torch.cuda.is_available():
        raise Unavailable("gsplat needs a CUDA device")
    arrays = {name: torch.tensor(np.asarray(x), device="cuda") for name, x in scene.arrays.items()}
    leaves = [arrays[n].requires_grad_() for n in ("means", "quats", "scales", "opacities", "features")]

    def draw() -> tuple[Any, Any]:
        image, alpha, _ = gsplat.rasterization(
            *leaves, arrays["world_to_camera"][None], arrays["intrinsics"][None], scene.size, scene.size, packed=False
        )
        return image, alpha

    def forward() -> None:
        with torch.no_grad():
            draw()
        torch.cuda.synchronize()

    def both() -> None:
        image, alpha = draw()
        (image.sum() + alpha.sum()).backward()
        torch.cuda.synchronize()

    return forward, both
