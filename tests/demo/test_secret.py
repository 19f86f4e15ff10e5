"""The secret that signs the cookies, and where it is kept."""

from __future__ import annotations

import pwd
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from freeim.demo import __main__ as command
from freeim.demo.secret import find_secret

LONG = "0123456789abcdef"


def test_the_one_given_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    environ = {"FREEIM_DEMO_SECRET": LONG + "env", "XDG_STATE_HOME": str(tmp_path)}
    assert find_secret(LONG + "given", environ) == LONG + "given"
    assert find_secret(None, environ) == LONG + "env"
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    secret = find_secret(None, environ)
    assert len(secret) > 40
    assert find_secret(None, environ) == secret
    [file] = (tmp_path / "freeim").iterdir()
    assert file.name == "demo-secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert find_secret(None, {"XDG_STATE_HOME": str(tmp_path / "other")}) != secret


def test_those_who_start_at_once_agree(tmp_path: Path) -> None:
    for turn in range(20):
        environ = {"XDG_STATE_HOME": str(tmp_path / str(turn))}
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(lambda _, environ=environ: find_secret(None, environ), range(8)))) == 1


def test_without_the_variable_of_the_platform_it_is_under_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    find_secret(None, {})
    assert (tmp_path / ".local" / "state" / "freeim" / "demo-secret").is_file()
    find_secret(None, {"XDG_STATE_HOME": "not/absolute"})
    assert not Path("not").exists()


def test_a_user_without_a_home_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    for variable in ("HOME", "XDG_STATE_HOME", "FREEIM_DEMO_SECRET"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert command.main(["--no-node"]) == 2
    assert capsys.readouterr().err == (
        "python -m freeim.demo: no secret to sign cookies with: this user has no home folder to keep one in; set "
        "FREEIM_DEMO_SECRET\n"
    )


@pytest.mark.parametrize("text", ["", "short\n"])
def test_a_file_that_holds_no_secret_is_no_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "freeim" / "demo-secret"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match="needs at least 16 characters"):
        find_secret(None, {"XDG_STATE_HOME": str(tmp_path)})
