"""The runtime folder: where it is, and which ones are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from freeim import ImHelper, RedisUnavailable
from freeim.embedded.join import join
from freeim.embedded.place import FOLDER_VARIABLE, Place, find, places
from freeim.errors import ConfigError
from tests.embedded.runtime import Runtime

STRANGER = 12345


def belongs_to_another(folder: Path) -> None:
    folder.mkdir(0o700)
    os.chown(folder, STRANGER, -1)


def can_be_entered(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o750)


def is_a_link(folder: Path) -> None:
    target = folder.with_name("target")
    target.mkdir(0o700)
    folder.symlink_to(target)


def is_a_file(folder: Path) -> None:
    folder.touch(0o600)


REFUSED: dict[str, Callable[[Path], None]] = {
    "can be entered by others": can_be_entered,
    "is no folder": is_a_file,
    "is no folder ": is_a_link,
}
if os.geteuid() == 0:  # only root can give a folder away
    REFUSED[f"belongs to the user with the id {STRANGER}"] = belongs_to_another


@pytest.mark.parametrize("why", REFUSED)
def test_a_folder_that_others_could_reach_is_refused_by_nodes_and_helpers(runtime: Runtime, why: str) -> None:
    REFUSED[why](runtime.folder)
    if runtime.folder.is_dir():
        runtime.socket.touch()
    with pytest.raises(ConfigError, match=why.strip()):
        join()
    if runtime.folder.is_dir():
        with ImHelper() as helper, pytest.raises(RedisUnavailable, match=why.strip()) as caught:
            helper.has_online(1)
        assert not caught.value.maybe_sent


def test_a_folder_that_cannot_be_made_is_told_with_the_way_out(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, f"{runtime.folder}/missing/run")
    with pytest.raises(ConfigError, match=f"cannot be made: No such file.*set {FOLDER_VARIABLE}"):
        join()


def test_a_path_that_no_socket_can_have_is_told_with_the_way_out(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "/tmp/" + "x" * 100)
    with pytest.raises(ConfigError, match=f"too long for a socket's path; set {FOLDER_VARIABLE}"):
        join()


def test_without_a_variable_it_is_looked_for_in_the_runtime_folder_of_the_login_and_in_tmp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folders = [place.folder for place in places()]
    assert folders[0] == f"{tmp_path}/freeim"
    assert folders[-1] == f"/tmp/freeim-{os.geteuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert f"{tmp_path}/missing/freeim" not in [place.folder for place in places()]


def test_a_server_in_another_of_these_folders_is_joined_rather_than_a_second_one_started(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a service and a login session of one user, of which one alone has a runtime folder of its own.
    first = join()
    both = [Place(f"{runtime.folder}-login"), Place(str(runtime.folder))]
    monkeypatch.setattr("freeim.embedded.place.places", lambda: both)
    second = join()
    assert second.url == first.url == both[1].url
    assert find() == both[1]
    first.close()
    second.close()
    runtime.assert_gone()


def test_a_place_that_somebody_else_has_taken_is_passed_over(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Place(f"{runtime.folder}-taken")
    can_be_entered(Path(taken.folder))
    Path(taken.socket).touch()
    monkeypatch.setattr("freeim.embedded.place.places", lambda: [taken, Place(str(runtime.folder))])
    assert find() is None
    redis = join()
    assert redis.url == f"unix://{runtime.socket}"
    assert find() == redis.place
    redis.close()
    runtime.assert_gone()


def test_a_folder_that_goes_away_while_it_is_looked_at_is_none(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Place.check

    def vanish(place: Place) -> None:
        Path(place.folder).rmdir()
        monkeypatch.setattr(Place, "check", real)
        real(place)

    runtime.folder.mkdir(0o700)
    monkeypatch.setattr(Place, "check", vanish)
    assert find() is None
    runtime.folder.mkdir(0o700)
    redis = join()
    redis.close()
    runtime.assert_gone()


def test_a_folder_that_cannot_be_used_is_told_with_the_way_out(runtime: Runtime) -> None:
    runtime.folder.mkdir(0o700)
    (runtime.folder / "start.lock").mkdir()
    with pytest.raises(ConfigError, match=rf"cannot be used: Is a directory; .*{FOLDER_VARIABLE}"):
        join()
