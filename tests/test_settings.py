"""Configs become settings; every wrong key or value is named."""

import dataclasses
import types

import ml_collections
import pytest

from configs import fit, gaussian, mesh
from gphm_jax.avatar_model import AvatarSpec
from gphm_jax.errors import InputError
from gphm_jax.fit_settings import FitSettings
from gphm_jax.settings import BACKENDS, Settings, from_mapping, read_flag
from gphm_kernels import backends

GAINS = (0.0, -1.0, float("nan"), float("inf"))  # no weight of pixels


@pytest.mark.parametrize("module", [gaussian, mesh])
@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_builds(module, preset):
    settings = from_mapping(Settings, module.get_config(preset).to_dict())
    assert settings.preset == preset
    assert settings.gaussian_stage == (module is gaussian)
    settings.check()


def test_defaults_are_the_papers_networks():
    settings = from_mapping(Settings, gaussian.get_config("paper").to_dict())
    nets = settings.networks
    assert (nets.width, nets.depth, nets.injection_depth, nets.feature_dim) == (512, 4, 8, 128)
    assert (nets.identity_dim, nets.expression_dim) == (512, 128)
    assert settings.stage1.identities * settings.stage1.views == 32
    assert settings.start == Settings().start and settings.start.code_steps == 0


def test_small_meets_its_minimum_sizes():
    settings = from_mapping(Settings, gaussian.get_config("small").to_dict())
    heads = settings.synthetic
    assert heads.identities >= 8 and heads.expressions >= 6 and heads.views >= 10
    assert settings.data.image_size == 256 and settings.gaussian.num_splats >= 16_000
    assert (
        settings.networks.width >= 64
        and settings.networks.depth == 4
        and settings.networks.injection_depth == 8
    )
    assert settings.stage2.losses.perceptual > 0


def test_misspelt_keys_name_the_nearest():
    values = dataclasses.asdict(Settings())
    values["stage1"]["rates"]["netwroks"] = 1.0
    with pytest.raises(
        InputError, match="stage1.rates.netwroks.*did you mean 'config.stage1.rates.networks'"
    ):
        from_mapping(Settings, values)
    values = dataclasses.asdict(Settings())
    values["stage1"]["steps"] = "many"
    with pytest.raises(InputError, match="config.stage1.steps"):
        from_mapping(Settings, values)
    with pytest.raises(InputError, match="unknown preset 'huge'.*tiny, small, paper"):
        gaussian.get_config("huge")


def test_settings_saved_before_a_key_existed_take_its_default():
    values = dataclasses.asdict(Settings())
    values["stage1"]["steps"] = 7
    del values["stage1"]["losses"]["eye_gain"], values["data"]
    settings = from_mapping(Settings, values)
    assert settings.stage1.steps == 7
    assert settings.stage1.losses.eye_gain == Settings().stage1.losses.eye_gain
    assert settings.data == Settings().data
    with pytest.raises(InputError, match="missing key 'config.expression_end'"):
        from_mapping(AvatarSpec, {})


def test_tuples_have_their_length_and_kinds():
    for key, value, words in (
        ("refine_widths", (8, 16), "config.networks.refine_widths.*3 entries"),
        ("encoder_widths", (8, "16"), r"config.networks.encoder_widths\[1\]"),
    ):
        values = dataclasses.asdict(Settings())
        values["networks"][key] = value
        with pytest.raises(InputError, match=words):
            from_mapping(Settings, values)


def changed(settings, key, value):
    """A copy with one dotted key changed."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(
        settings, **{name: changed(getattr(settings, name), rest, value) if rest else value}
    )


TINY = from_mapping(Settings, gaussian.get_config("tiny").to_dict())
TINY_FIT = from_mapping(FitSettings, fit.get_config("tiny").to_dict())
NAN = float("nan")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(f"{s}.{k}", 0) for s in ("stage1", "stage2") for k in ("steps", "identities", "frames", "views")],
        *[(f"{s}.losses.{k}", x) for s in ("stage1", "stage2") for k in ("face_gain", "eye_gain") for x in GAINS],
        ("stage2.downscale", 0),
        ("stage2.downscale_steps", -1),
        ("stage1.schedule.warmup_steps", -1),
        ("stage2.losses.perceptual_crop", 65),
        ("stage2.losses.perceptual_crop", 8),
        ("data.image_size", 68),  # of refine_patch=2: a multiple of 8
        ("data.image_size", 72),  # and of downscale=2 in stage 2
        ("data.image_size", 16),
        ("data.face_size", 24),  # four encoder widths
        ("data.nonface_size", 40),
        ("data.cache_gb", -1.0),
        ("data.cache_gb", NAN),
        ("data.cache_gb", float("inf")),
        ("data.synthesized_probability", 1.5),
        ("networks.encoder_widths", (8, 12, 16, 32)),
        ("networks.encoder_widths", ()),
        ("networks.refine_widths", (8, 0, 16)),
        ("networks.refine_patch", 0),
        ("networks.depth", 0),
        ("guide.resolution", (20, 0, 18)),
        ("guide.box_max", (1.3, -1.35, 1.1)),
        ("guide.region_far", 0.1),
        ("gaussian.num_splats", -1),
        ("gaussian.num_splats", 3),
        ("gaussian.initial_opacity", 1.0),
        ("gaussian.face_density", 0.0),
        ("start.sdf", "sphere"),
        ("start.gaussians", "sphere"),
        ("start.sdf_steps", 0),
        ("start.code_steps", -1),
        ("start.code_frames", 0),
        ("log.every", 0),
        ("log.grid_every", 0),
        ("log.checkpoint_every", 0),
        ("evaluation.lpips_every", 0),
        ("backend", "cuda"),
        ("synthetic.size", 8),
        ("seed", -1),
        ("fsdp", 0),
    ],
)
def test_values_that_no_run_survives_are_named(key, value):
    with pytest.raises(InputError) as caught:
        changed(TINY, key, value).check()
    assert str(caught.value).startswith(f"config.{key}=") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(f"{s}.losses.{k}", x) for s in ("identity", "finetune") for k in ("face_gain", "eye_gain") for x in GAINS],
        ("identity.steps", 0),
        ("identity.frames", 0),
        ("finetune.steps", 0),
        ("finetune.frames", 0),
        ("finetune.limits.color", 0.0),
        ("finetune.trust_pixels", -1.0),
        ("identity.downscale", 0),
        ("identity.share", 1.5),
        ("by_images.ten.length", 0.0),
        ("by_images.one.freedom", NAN),
        ("by_images.ten.sway", 1.5),
        ("by_images.many.moves", ("refine", "mouth")),
        ("region", "hat"),
        ("images", -1),
        ("held_out_fraction", 1.0),
        ("held_out_fraction", NAN),
        ("preview.frames", 0),
        ("preview.fps", 0),
        ("evaluation.training_frames", 0),
        ("evaluation.lpips", ("vgg", "resnet")),
        ("backend", "cuda"),
        ("cache_gb", -1.0),
        ("log.every", 0),
        ("log.checkpoint_every", 0),
    ],
)
def test_values_that_no_fit_survives_are_named(key, value):
    with pytest.raises(InputError) as caught:
        changed(TINY_FIT, key, value).check()
    assert str(caught.value).startswith(f"config.{key}=") and "\n" not in str(caught.value)


def test_a_fits_crops_lie_in_the_head_models_pictures():
    settings = changed(TINY_FIT, "finetune.losses.perceptual", 0.1)
    settings.check_sizes(TINY)
    small = changed(TINY, "data.image_size", 32)
    with pytest.raises(InputError, match="config.finetune.losses.perceptual_crop=64.*between 16 and 32"):
        settings.check_sizes(small)
    TINY_FIT.check_sizes(small)  # asks for no perceptual loss
    with pytest.raises(InputError, match="config.identity.downscale=16.*multiples of 8"):
        changed(TINY_FIT, "identity.downscale", 16).check_sizes(small)


@pytest.mark.parametrize(
    ("key", "value", "switch", "off"),
    [
        ("data.image_size", 72, "stage2.downscale_steps", 0),  # whole pictures alone
        ("stage2.losses.perceptual_crop", 999, "gaussian_stage", False),
        ("stage2.losses.perceptual_crop", 999, "stage2.losses.perceptual", 0.0),
    ],
)
def test_what_is_not_used_is_not_checked(key, value, switch, off):
    used = changed(TINY, key, value)
    with pytest.raises(InputError, match=f"config.{key}={value}"):
        used.check()
    assert changed(used, switch, off).check() is None


def test_backends_are_those_of_the_kernels():
    assert set(BACKENDS) == set(backends.NAMES)


def test_the_flag_is_checked():
    values = ml_collections.ConfigDict(dataclasses.asdict(changed(TINY, "log.every", 0)))
    with pytest.raises(InputError, match="config.log.every=0"):
        read_flag(Settings, types.SimpleNamespace(value=values))
