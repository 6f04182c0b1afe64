"""Both stages: the guide, then the Gaussian head model.

    python train.py --config=configs/gaussian.py            # preset small
    python train.py --config=configs/gaussian.py:tiny
    python train.py --config=configs/gaussian.py:paper --config.data.path=DATASET

tiny   a few dozen steps at 64x64 for tests, under 90 s on 2 CPU cores; the heads are blobs.
small  8 identities x 6 expressions x 10 cameras at 256x256, 16k splats, on 2 CPU cores.
paper  the paper's sizes at 512x512, for a cluster: set data.path.
"""

import dataclasses

import ml_collections

from gphm_jax.errors import InputError
from gphm_jax.settings import Settings


def get_config(preset: str = "small") -> ml_collections.ConfigDict:
    """The resolved settings of a preset; every field can be overridden by --config.KEY=VALUE."""
    presets = {"tiny": _tiny, "small": _small, "paper": _paper}
    if preset not in presets:
        raise InputError(
            f"unknown preset '{preset}' of configs/gaussian.py: choose one of {', '.join(presets)}"
        )
    config = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
    config.preset = preset
    presets[preset](config)
    return config.lock()


def _paper(c: ml_collections.ConfigDict) -> None:
    c.stage1.steps, c.stage1.identities, c.stage1.views = 100_000, 8, 4  # about a day on 8 RTX 4090
    c.stage1.rates.update(networks=1e-3, refine=1e-3, codes=1e-3, landmarks=1e-4, pose_corrections=1e-5)
    c.stage1.losses.update(silhouette=0.1, laplacian=100.0, perceptual=0.0)
    c.stage2.steps, c.stage2.identities = 600_000, 8  # about 7 days


def _small(c: ml_collections.ConfigDict) -> None:
    c.synthetic.size = 256
    c.data.update(image_size=256, face_size=80, nonface_size=32, synthesized_probability=0.5)
    c.networks.update(
        width=64,
        feature_dim=64,
        identity_dim=64,
        expression_dim=32,
        refine_widths=(16, 32, 64),
        refine_patch=2,
        injection_residual=True,
    )
    c.networks.octaves = 6
    c.guide.update(resolution=(42, 38, 36), max_vertices=14_000, max_faces=28_000)
    c.gaussian.update(num_splats=16_384, face_density=3.0, initial_opacity=0.3)
    c.start.update(sdf="hull", code_steps=700)
    # Eight pictures of half the size teach more than two whole ones, in the same time: with less of a batch its noise
    # drowns the codes of expression and motion. Sharpness comes last.
    c.stage1.update(steps=220, identities=4, frames=2, views=1, downscale=2, downscale_steps=220)
    c.stage1.rates.update(
        networks=2e-3, encoders=1e-4, refine=1e-3, codes=1e-2, landmarks=1e-4, pose_corrections=1e-5
    )
    c.stage1.schedule.update(warmup_steps=20, hold_fraction=0.2, final_fraction=0.1)
    c.stage1.losses.update(
        silhouette=0.1, landmarks=30.0, laplacian=100.0, perceptual=0.0, face_gain=3.0, eye_gain=5.0
    )
    # These rates are for a run of a few thousand steps; the paper's are for hundreds of thousands.
    c.stage2.update(steps=1330, identities=4, frames=2, views=1, downscale=2, downscale_steps=1030)
    c.stage2.rates.update(
        networks=1e-3, encoders=1e-4, refine=1e-3, codes=1e-2, landmarks=1e-4, pose_corrections=1e-5,
        positions=4e-4, features=1e-2, log_scales=1e-2, quats=4e-3, opacity_logits=4e-2,
    )  # fmt: skip
    c.stage2.schedule.update(warmup_steps=50, hold_fraction=0.2, final_fraction=0.03)
    c.stage2.losses.update(
        silhouette=0.1, landmarks=30.0, perceptual=0.03, perceptual_crop=32, face_gain=4.0, eye_gain=5.0
    )
    c.evaluation.lpips_every = 8
    c.log.update(every=20, grid_every=300, checkpoint_every=200)


def _tiny(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.synthetic.update(identities=2, expressions=2, views=4, heldout_views=2, expression_images=1, size=64)
    c.data.update(image_size=64, face_size=32, nonface_size=32)
    c.networks.update(width=32, feature_dim=16, identity_dim=16, expression_dim=16, refine_widths=(8, 16, 16))
    c.networks.encoder_widths = (8, 16, 16, 32)
    c.guide.update(resolution=(20, 20, 18), max_vertices=6_000, max_faces=12_000)
    c.gaussian.num_splats = 2_048
    c.start.update(sdf_steps=250, code_steps=40, code_identities=2)
    c.stage1.rates.networks = 5e-4
    c.stage1.update(steps=40, identities=1, frames=1, views=2, downscale_steps=0)
    c.stage1.schedule.warmup_steps = c.stage2.schedule.warmup_steps = 2
    c.stage2.update(steps=60, identities=1, frames=2, downscale_steps=10)
    c.log.update(every=5, grid_every=40, checkpoint_every=20)
