"""What the repository says about its dependencies: pins that name no host, and a licence for each."""

import importlib.util
import pathlib
import re
import tomllib

import pytest

from gphm_jax import assets

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")


def direct() -> set[str]:
    groups = [
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
    ]
    return {name_of(requirement) for group in groups for requirement in group}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_pins_are_exact_hashed_and_name_no_host(file):
    text = (ROOT / file).read_text()
    assert not re.search(r"://|^\s*-", text.replace("--hash=", ""), re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    assert len(entries) > 40
    for entry in entries:
        assert re.match(r"[A-Za-z0-9_.-]+==[^\s;]+( ; [^\\]+)? \\\n", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_pins_hold_what_the_project_asks_for():
    locked = {
        line.split("==")[0].lower()
        for line in (ROOT / "requirements-dev.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["footage"], *extras["packed"], *extras["video"]]
    wanted += extras["view"]
    wanted += [requirement for group in PROJECT["dependency-groups"].values() for requirement in group]
    assert {name_of(requirement) for requirement in wanted} <= locked


def test_test_pins_repeat_the_run_time_pins():
    pins = [
        {line for line in (ROOT / file).read_text().splitlines() if "==" in line}
        for file in ("requirements.txt", "requirements-dev.txt")
    ]
    assert pins[0] < pins[1]


def test_every_dependency_and_asset_has_a_licence():
    page = (ROOT / "docs" / "licences.md").read_text().lower().replace("_", "-")
    words = set(re.findall(r"[a-z0-9.-]+", page))
    assert not direct() - words
    assert not {package.name.lower().replace("_", "-") for package in assets.PACKAGES} - words


@pytest.mark.parametrize("compiled", [True, False])
def test_wheels_carry_the_kernels_and_editable_installs_do_not(compiled, tmp_path):
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.KernelLibrary(str(ROOT), {}, None, None, "", "wheel")
    gpu = hook._load("triton/binaries.py")
    gpu.folder = lambda: tmp_path
    if compiled:
        gpu.write(tmp_path, [], "3.9.0")
    load = hook._load
    hook._load = lambda name: gpu if name == "triton/binaries.py" else load(name)
    packed = {}
    for version in ("editable", "standard"):
        hook.initialize(version, data := {"force_include": {}})
        packed[version] = set(data["force_include"].values())
    assert not packed["editable"]
    assert ("gphm_kernels/build/gpu" in packed["standard"]) == compiled
    library = packed["standard"] - {"gphm_kernels/csrc", "gphm_kernels/build/gpu"}
    assert len(library) == 1 and re.fullmatch(r"gphm_kernels/build/libgphm_kernels-\w+\.so", *library)
