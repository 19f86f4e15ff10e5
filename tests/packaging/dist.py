"""The files of a release, and empty environments to install them into."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def dist(pattern: str) -> Path:
    """Return the one file in FREEIM_TEST_DIST that matches."""
    folder = os.environ.get("FREEIM_TEST_DIST")
    if not folder:
        pytest.skip("the files of a release are tested by `make test`, which builds them")
    found = sorted(Path(folder).glob(pattern))
    assert len(found) == 1, f"{pattern} in {folder}: {found}"
    return found[0]


def wheel() -> Path:
    return dist("freeim-*-cp{}{}-*.whl".format(*sys.version_info))


def pure_wheel() -> Path:
    return dist("freeim-*-py3-none-any.whl")


def sdist() -> Path:
    return dist("freeim-*.tar.gz")


def names(file: Path) -> set[str]:
    """Return the names of a wheel's or an sdist's files, those of the sdist without its first folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            return set(archive.namelist())
    with tarfile.open(file) as archive:
        return {member.name.split("/", 1)[1] for member in archive if member.isfile()}


def floor_of(dependency: str) -> str:
    """Return ``redis==5.0`` for a dependency ``redis>=5.0``."""
    for requirement in pyproject()["project"]["dependencies"]:
        match = re.match(r"([\w-]+)>=([\w.]+)", requirement)
        assert match, requirement
        if match[1] == dependency:
            return f"{match[1]}=={match[2]}"
    raise LookupError(dependency)


class EmptyVenv:
    """An environment that holds nothing, not even pip."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        self.python = str(self.bin / "python")
        self.cwd = folder

    def install(self, *requirements: str | Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.python)
        self._run(*pip, "install", "--quiet", *map(str, requirements)).check_returncode()

    def run(self, program: str, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return self._run(str(self.bin / program), *args, env=env)

    def _run(self, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FREEIM_"))}
        done = subprocess.run(command, cwd=self.cwd, env=clean | (env or {}), text=True, capture_output=True)
        if done.returncode:
            print(*command, done.stdout, done.stderr, sep="\n")  # pytest shows it where the test fails
        return done
