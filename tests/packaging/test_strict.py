"""The plugin that counts what was not tested as failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "import pytest\n"


@pytest.mark.parametrize(
    ("module", "outcome"),
    [
        ("def test(): pass", "1 passed"),
        ("def test(): pytest.skip('no server')", "1 failed"),
        ("@pytest.mark.skip('later')\ndef test(): pass", "1 error"),
        ("@pytest.mark.skipif(True, reason='not here')\ndef test(): pass", "1 error"),
        ("@pytest.mark.xfail\ndef test(): assert False", "1 failed"),
        ("@pytest.mark.xfail\ndef test(): pass", "1 failed"),
        ("@pytest.mark.xfail(run=False)\ndef test(): pass", "1 error"),
        ("@pytest.fixture\ndef server(): pytest.skip('none')\ndef test(server): pass", "1 error"),
        ("pytest.importorskip('a_package_that_nobody_has')\ndef test(): pass", "1 error"),
    ],
)
def test_a_skip_and_an_xfail_are_failures(module: str, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "strict.py").write_text((Path(__file__).parents[1] / "strict.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nxfail_strict = true\n")
    (tmp_path / "test_it.py").write_text(HEAD + module + "\n")
    command = (sys.executable, "-m", "pytest", "-p", "strict", "-p", "no:cacheprovider", "-q")
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert f"{outcome} in" in done.stdout, done.stdout
    assert (done.returncode == 0) == (outcome == "1 passed")
