"""What the files of a release hold, and that they run where nothing else is installed."""

from __future__ import annotations

import importlib.metadata
import re
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.packaging.dist import CHECKOUT, EmptyVenv, names, pure_wheel, pyproject, sdist, wheel

LUA = {f"freeim/lua/{path.name}" for path in (CHECKOUT / "freeim" / "lua").glob("*.lua")}
PAGE = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "freeim" / "demo" / "static").iterdir()}
MODULES = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "freeim").rglob("*.py")}
CORE_SOURCE = {f"freeim/{path.name}" for path in (CHECKOUT / "freeim").glob("_core*.p[xy][xdi]")}

RUNS = """
import importlib.metadata
import freeim._core
from freeim import AsyncImHelper, ImHelper, Node
print(importlib.metadata.version("freeim"))
"""


def test_freeim_is_the_installed_one_and_not_that_of_the_checkout() -> None:
    wheel()
    import freeim
    import freeim._core

    for module in (freeim, freeim._core):
        assert module.__file__ is not None
        assert Path(module.__file__).parent.parent.name == "site-packages"
        assert not Path(module.__file__).is_relative_to(CHECKOUT / "freeim")


def test_the_version_stands_in_one_place() -> None:
    version = pyproject()["project"]["version"]
    wheel()
    assert importlib.metadata.version("freeim") == version
    assert re.match(rf"## \[?({re.escape(version)}|Unreleased)\b", changelog_headings()[0])


def changelog_headings() -> list[str]:
    text = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("## ")]


def test_the_wheel_holds_the_modules_the_core_its_stub_the_scripts_and_the_page_and_nothing_else() -> None:
    held = {name for name in names(wheel()) if ".dist-info/" not in name}
    cores = {name for name in held if re.fullmatch(r"freeim/_core\..*\.so", name)}
    assert len(cores) == 1
    assert held == cores | MODULES | LUA | PAGE | {"freeim/_core.pyi", "freeim/py.typed"}


def test_the_pure_wheel_is_the_wheel_without_the_core() -> None:
    held = {name for name in names(pure_wheel()) if ".dist-info/" not in name}
    assert held == MODULES | LUA | PAGE | {"freeim/_core.pyi", "freeim/py.typed"}


def test_the_sdist_holds_all_that_a_build_needs() -> None:
    held = names(sdist())
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "CHANGELOG.md"} <= held
    assert MODULES | LUA | PAGE | CORE_SOURCE | {"freeim/_core.pyi", "freeim/py.typed"} <= held
    # C that Cython made is not in it; the programs of the benchmarks are sources.
    assert not [name for name in held if name.endswith((".c", ".so", ".pyc")) and not name.startswith("bench/")]
    assert {f"bench/{name}.c" for name in ("delay", "load", "publish", "yardstick")} <= held


@pytest.mark.parametrize("file", [wheel, pure_wheel])
def test_what_is_compiled_is_asked_for_only_where_a_node_can_run(file: Callable[[], Path]) -> None:
    with zipfile.ZipFile(file()) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    everywhere = [each for each in required if ";" not in each]
    assert [re.split(r"[<>=]", each)[0] for each in everywhere] == ["redis"]
    for each in set(required) - set(everywhere):
        assert each.endswith('; implementation_name == "cpython" and sys_platform != "win32"')
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_installs_and_runs_in_an_empty_environment(kind: str, tmp_path: Path) -> None:
    venv = EmptyVenv(tmp_path / "venv")
    venv.install(wheel() if kind == "wheel" else sdist())
    version = pyproject()["project"]["version"]
    assert venv.run("python", "-W", "error", "-c", RUNS).stdout.strip() == version
    command = venv.run("freeim-server", "--version")
    assert command.returncode == 0
    assert command.stdout.startswith(f"freeim-server {version} ")
    assert venv.run("freeim-server", "--help").returncode == 0
