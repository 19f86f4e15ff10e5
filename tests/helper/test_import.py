"""What ``import freeim`` loads, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import freeim


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_compiled_and_no_redis_py() -> None:
    code = (
        "import freeim, sys; freeim.ImHelper, freeim.AsyncImHelper\n"
        "print([m for m in ('redis', 'hiredis', 'uvloop', 'picows', 'aiofastnet', 'freeim._core', 'freeim.node')"
        " if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_a_helper_needs_nothing_but_redis_py() -> None:
    code = (
        "import sys\n"
        "for name in ('uvloop', 'picows', 'aiofastnet', 'freeim._core', 'freeim.node', 'hiredis'):\n"
        "    sys.modules[name] = None\n"
        "import freeim; freeim.ImHelper(); freeim.AsyncImHelper(); print('fine')"
    )
    assert run(code) == "fine"


def test_every_public_name_is_there() -> None:
    for name in freeim.__all__:
        assert getattr(freeim, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    assert not hasattr(freeim, "NoSuchName")
