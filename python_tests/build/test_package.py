"""The package as installed: light to import, lazy, whole without its compiled module."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import icl_fast

PACKAGE = Path(icl_fast.__file__).parent


def python(program: str, *arguments: str, folder: Path = PACKAGE.parent) -> str:
    """What a fresh Python prints that imports icl_fast from `folder` (`-c` puts the working folder first)."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    loaded = python("import icl_fast, sys; print(*sys.modules)").split()
    assert "icl_fast" in loaded
    assert not {"torch", "numpy", "pydantic", "zarr", "xarray", "click", "icl_fast.ops"} & set(loaded)


def test_ops_need_torch_and_numpy_only() -> None:
    loaded = python("import icl_fast.ops, sys; print(*sys.modules)").split()
    assert "torch" in loaded
    assert not {"pydantic", "zarr", "xarray", "click", "rich", "sklearn", "tokenizers", "yaml"} & set(loaded)


def test_help_imports_no_command() -> None:
    program = (
        "import sys; from icl_fast.cli.main import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    *text, modules = python(program).splitlines()
    assert any(line.strip().startswith("ablate ") for line in text)
    assert not {"torch", "icl_fast.cli.train", "icl_fast.cli.info"} & set(modules.split())


@pytest.mark.parametrize("name", icl_fast.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(icl_fast, name).__name__ == name
    assert name in dir(icl_fast)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gibberish'"):
        _ = icl_fast.gibberish


INFO = "from icl_fast.cli.main import main; main()"


@pytest.mark.parametrize("content", [b"", b"this is no shared object", b"\x7fELF" + bytes(4096)])
def test_a_broken_module_costs_only_the_kernels(tmp_path: Path, content: bytes) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "_C.*")
    package = shutil.copytree(PACKAGE, tmp_path / "icl_fast", ignore=ignore)
    (package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(content)
    facts = json.loads(python(INFO, "info", "--json", folder=tmp_path))
    assert facts["built"]["cpu_kernels"] is False
    assert facts["built"]["why_not"].startswith("icl_fast._C does not load (")
    assert facts["built"]["why_not"].endswith("install icl_fast again")


def test_a_machine_without_an_openmp_of_the_name_that_wheels_ask_for() -> None:
    program = (
        "import sys\n"
        "class Fails:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'icl_fast._C':\n"
        "            raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')\n"
        "sys.meta_path.insert(0, Fails())\n"
        "from icl_fast.ops import _backend\n"
        "print(_backend.load_error())"
    )
    said = python(program)
    assert "does not load (libgomp.so.1: cannot" in said
    assert said.endswith("; install the system's (Debian: libgomp1) or a newer torch\n")


def test_without_the_module_it_is_plain_torch() -> None:
    program = (
        "import sys\n"
        "sys.modules['icl_fast._C'] = None\n"  # the import then fails as for a file that is not there
        "import icl_fast, torch\n"
        "from icl_fast.ops import _backend\n"
        "assert _backend.build_info() == {} and _backend.cuda_device_count() == 0\n"
        "try:\n    _backend.axpy(1.0, torch.ones(1), torch.ones(1))\n"
        "except RuntimeError as error:\n    print(error)\n"
        "print(icl_fast.linear_cross_entropy(torch.zeros(1, 1, 2), torch.zeros(4, 2), torch.zeros(1, 1).long()).item())"
    )
    why, loss = python(program).splitlines()
    assert "installed without a C++ compiler" in why
    assert abs(float(loss) - 1.3862944) < 1e-6  # log 4: four equal logits


def test_every_command_has_a_module() -> None:
    from icl_fast.cli.main import COMMANDS

    for name, command in COMMANDS.items():
        module, _, attribute = command.target.partition(":")
        assert attribute == name
        assert importlib.util.find_spec(module), module
