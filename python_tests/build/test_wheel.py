"""The wheel of the source archive, used from another folder by a Python that has the base install alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff")
# of the base install's Python; subprocesses inherit it
WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hide
"""
EXTRAS = {"xarray", "zarr", "numcodecs", "pandas", "matplotlib", "PIL", "fontTools", "scipy", "sklearn", "h5py", "ray"}


def build(tree: Path, *command: str, **environment: str) -> None:
    """A command of setup.py, without a compiler, as the kernels take minutes."""
    without = os.environ | {"ICL_FAST_CUDA": "off", "PATH": str(tree)} | environment
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command], cwd=tree, env=without, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("archive")
    for source in map(ROOT.joinpath, (*FILES, "csrc", "icl_fast", "configs")):
        if source.is_dir():
            shutil.copytree(source, tree / source.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, tree)
    build(tree, "sdist", "--dist-dir", str(out))
    (packed,) = out.glob("icl_fast-*.tar.gz")
    shutil.unpack_archive(packed, out)
    return next(path for path in out.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def wheel(archive: Path) -> Path:
    build(archive, "bdist_wheel", "--dist-dir", "wheels")
    (found,) = (archive / "wheels").iterdir()
    return found


def test_without_a_compiler_the_wheel_is_for_any_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_with_compiled_code_it_is_for_this_one(archive: Path, tmp_path: Path) -> None:
    """Of sources that compile in no time."""
    tree = tmp_path / "tree"
    shutil.copytree(archive, tree, ignore=shutil.ignore_patterns("*.cpp", "wheels"))
    for source in archive.rglob("csrc/**/*.cpp"):
        (tree / source.relative_to(archive)).write_text("")
    build(tree, "bdist_wheel", "--dist-dir", str(tmp_path / "out"), PATH=os.environ["PATH"])
    (found,) = (tmp_path / "out").iterdir()
    assert re.search(r"-cp3\d+-cp3\d+-(?!any)\w+\.whl$", found.name)
    assert any(name.startswith("icl_fast/_C.") for name in zipfile.ZipFile(found).namelist())


def test_archive_and_wheel_carry_the_configs(archive: Path, wheel: Path) -> None:
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert "configs/demo/two_layer.yaml" in expected
    assert {str(path.relative_to(archive)) for path in (archive / "configs").rglob("*.yaml")} == expected
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.removeprefix("icl_fast/") for name in names if name.startswith("icl_fast/configs/")} == expected


def test_the_description_needs_no_file_beside_it(wheel: Path) -> None:
    opened = zipfile.ZipFile(wheel)
    (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(opened.read(name))
    description = metadata.get_payload(decode=True).decode() or metadata["Description"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert description.startswith((ROOT / "README.md").read_text(encoding="utf-8")[:200])
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", description) == []


def test_the_base_install_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "sitecustomize.py").write_text(WITHOUT_EXTRAS.format(hidden=EXTRAS))
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "installed.py"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "extras as they should be" in done.stdout


@pytest.mark.parametrize(
    ("system", "processor", "tag"),
    [
        ("linux", "x86_64", "manylinux_x86_64"),
        ("linux", "aarch64", "manylinux_aarch64"),
        ("macos", "arm64", "macosx_arm64"),
        ("windows", "AMD64", "win_amd64"),
    ],
)
def test_there_is_a_wheel_for_every_python_of_the_classifiers(system: str, processor: str, tag: str) -> None:
    pytest.importorskip("cibuildwheel")
    command = [sys.executable, "-m", "cibuildwheel", "--platform", system, "--archs", processor]
    done = subprocess.run([*command, "--print-build-identifiers"], cwd=ROOT, capture_output=True, text=True)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    minors = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', project)
    assert len(minors) >= 5
    assert done.stdout.split() == [f"cp3{minor}-{tag}" for minor in minors], done.stderr


def test_the_workflow_builds_on_every_platform() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8"))["jobs"]
    runners = jobs["wheels"]["strategy"]["matrix"]["runner"]
    assert {runner.partition("-")[0] for runner in runners} == {"ubuntu", "macos", "windows"}
    assert any(runner.endswith("-arm") for runner in runners)
    assert any("cibuildwheel" in step.get("run", "") for step in jobs["wheels"]["steps"])


def test_the_wheels_are_tried_by_a_program_that_is_there() -> None:
    (program,) = re.findall(r'^test-sources = \["(.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f'test-command = "python {program} --compiled"' in (ROOT / "pyproject.toml").read_text()
    assert (ROOT / program).is_file()
