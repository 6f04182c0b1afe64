"""A folder belongs to one run once that has left something in it; every fault on disk is one line."""

import dataclasses
import functools
import json

import pytest

from configs import gaussian
from configs.fit import get_config as fit_config
from gphm_jax import fit_run, workdir
from gphm_jax.errors import InputError
from gphm_jax.files import plain
from gphm_jax.fit_settings import FitSettings
from gphm_jax.settings import Settings, from_mapping
from gphm_jax.workdir import Workdir

SETTINGS = from_mapping(Settings, gaussian.get_config("tiny").to_dict())
OTHER = dataclasses.replace(SETTINGS, seed=5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def save_checkpoint(path, step="20"):
    (path / "checkpoints" / "stage1" / step).mkdir(parents=True)


def test_a_started_run_keeps_its_settings(path):
    Workdir.open(path, SETTINGS)
    save_checkpoint(path)
    Workdir.open(path, SETTINGS)
    with pytest.raises(InputError, match="another config.seed: use another --workdir"):
        Workdir.open(path, OTHER)
    rates = dataclasses.replace(SETTINGS.stage1.rates, networks=1.0)
    with pytest.raises(InputError, match="another config.stage1.rates.networks"):
        Workdir.open(path, dataclasses.replace(SETTINGS, stage1=dataclasses.replace(SETTINGS.stage1, rates=rates)))


def test_settings_that_change_no_result_may_change(path):
    Workdir.open(path, SETTINGS)
    save_checkpoint(path)
    changed = dataclasses.replace(
        SETTINGS,
        backend="xla",
        fsdp=2,
        data=dataclasses.replace(SETTINGS.data, cache_gb=0.5),
        log=dataclasses.replace(SETTINGS.log, every=7),
        evaluation=dataclasses.replace(SETTINGS.evaluation, lpips_every=9),
    )
    Workdir.open(path, changed)
    assert json.loads((path / "config.json").read_text())["data"]["cache_gb"] == 0.5
    with pytest.raises(InputError, match="another config.data.face_size"):
        Workdir.open(path, dataclasses.replace(SETTINGS, data=dataclasses.replace(SETTINGS.data, face_size=16)))


@pytest.mark.parametrize(("free", "settings"), [(workdir.FREE, SETTINGS), (fit_run.FREE, FitSettings())])
def test_free_settings_exist(free, settings):
    known = plain(dataclasses.asdict(settings))
    assert all(functools.reduce(dict.get, key.split("."), known) is not None for key in free)


def test_a_run_that_never_began_leaves_its_folder_free(path):
    Workdir.open(path, SETTINGS)
    (path / "checkpoints" / "stage1").mkdir(parents=True)
    save_checkpoint(path, "20.orbax-checkpoint-tmp")  # cut off while it was written
    Workdir.open(path, OTHER)
    assert json.loads((path / "config.json").read_text())["seed"] == 5


def test_a_finished_run_stays_as_it_is(path):
    opened = Workdir.open(path, SETTINGS)
    opened.finish({"psnr": 1.0})
    before = (path / "config.json").read_bytes()
    Workdir.open(path, dataclasses.replace(SETTINGS, backend="xla"))
    assert (path / "config.json").read_bytes() == before
    with pytest.raises(InputError, match="another config.seed"):
        Workdir.open(path, OTHER)


def test_a_setting_that_another_version_does_not_know_matters_only_to_what_is_not_finished(path):
    opened = Workdir.open(path, SETTINGS)
    found = json.loads((path / "config.json").read_text())
    del found["stage1"]["steps"]
    (path / "config.json").write_text(json.dumps(found | {"given_up": 1}))
    save_checkpoint(path)
    with pytest.raises(InputError, match="another config.given_up"):
        Workdir.open(path, SETTINGS)
    opened.finish({"psnr": 1.0})
    Workdir.open(path, SETTINGS)
    with pytest.raises(InputError, match="another config.seed"):
        Workdir.open(path, OTHER)


def test_a_fit_belongs_to_its_prior_and_input(tmp_path):
    settings = from_mapping(FitSettings, fit_config("tiny").to_dict())
    out, prior, footage = tmp_path / "out", tmp_path / "prior", tmp_path / "footage"
    assert not fit_run.is_done(out, settings, prior, footage)
    save_checkpoint(out)
    changed = dataclasses.replace(settings, backend="xla", cache_gb=1.0)
    assert not fit_run.is_done(out, changed, prior, footage)
    with pytest.raises(InputError, match="another config.seed: use another --out"):
        fit_run.is_done(out, dataclasses.replace(settings, seed=1), prior, footage)
    with pytest.raises(InputError, match="another --prior"):
        fit_run.is_done(out, settings, tmp_path / "other", footage)
    with pytest.raises(InputError, match="another --seconds"):
        fit_run.is_done(out, settings, prior, footage, 60.0)
    config = json.loads((out / "config.json").read_text())
    del config["seconds"]  # as before there was a budget
    (out / "config.json").write_text(json.dumps(config))
    assert not fit_run.is_done(out, settings, prior, footage)
    (out / "metrics.json").write_text("{}")
    assert fit_run.is_done(out, settings, prior, footage)
    with pytest.raises(InputError, match="another --seconds"):
        fit_run.is_done(out, settings, prior, footage, 60.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "is not JSON"), (b"\xff\xfe\x00", "is not JSON"), (b"[1]", "holds no settings"), (None, "cannot use")],
)
def test_a_damaged_config_is_named(path, content, words):
    save_checkpoint(path)
    if content is None:
        (path / "config.json").mkdir()
    else:
        (path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        Workdir.open(path, SETTINGS)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_used_is_named(tmp_path, path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot use .*file/run.*--workdir"):
        Workdir.open(tmp_path / "file" / "run", SETTINGS)

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "exists", refuse)  # these tests may run as root, to whom all is permitted
    with pytest.raises(InputError, match="Permission denied"):
        Workdir.open(path, SETTINGS)
