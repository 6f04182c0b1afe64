"""Configs become settings; every wrong key or value is named."""

import dataclasses

import pytest

from configs import gaussian, mesh
from gphm_jax.errors import InputError
from gphm_jax.settings import Settings, from_mapping
from gphm_jax.workdir import Workdir


@pytest.mark.parametrize("module", [gaussian, mesh])
@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_builds(module, preset):
    settings = from_mapping(Settings, module.get_config(preset).to_dict())
    assert settings.preset == preset
    assert settings.gaussian_stage == (module is gaussian)


def test_defaults_are_the_papers_networks():
    settings = from_mapping(Settings, gaussian.get_config("paper").to_dict())
    nets = settings.networks
    assert (nets.width, nets.depth, nets.injection_depth, nets.feature_dim) == (512, 4, 8, 128)
    assert (nets.identity_dim, nets.expression_dim) == (512, 128)
    assert settings.stage1.identities * settings.stage1.views == 32


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
    del values["stage1"]["steps"]
    with pytest.raises(InputError, match="missing key 'config.stage1.steps'"):
        from_mapping(Settings, values)
    with pytest.raises(InputError, match="unknown preset 'huge'.*tiny, small, paper"):
        gaussian.get_config("huge")


def test_a_workdir_belongs_to_one_config(tmp_path):
    settings = from_mapping(Settings, gaussian.get_config("tiny").to_dict())
    Workdir.open(tmp_path / "run", settings)
    Workdir.open(tmp_path / "run", dataclasses.replace(settings, backend="xla"))
    with pytest.raises(InputError, match="another config.seed"):
        Workdir.open(tmp_path / "run", dataclasses.replace(settings, seed=5))
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        Workdir.open(tmp_path / "run", settings)
