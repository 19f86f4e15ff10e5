"""Where options come from: command line, environment, file, default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freeim.config import OPTIONS, Options
from freeim.config_load import load
from freeim.config_show import toml_value
from freeim.errors import ConfigError

# One value other than the default for each option that is a text or a list; the others are made from their kind.
SAMPLES: dict[str, Any] = {
    "bind": "0.0.0.0:7001",
    "node": "im-{index}",
    "tls_cert": "/etc/ssl/im.example.com.pem",
    "tls_key": "/etc/ssl/private/im.example.com.key",
    "trusted_proxies": ("127.0.0.1", "10.0.0.0/8", "fd00::/8"),
    "origins": ("https://app.example.com", "https://*.example.org:8443"),
    "nodes": ("10.0.0.1:6001", "127.0.0.1:6001"),
    "public_url": "wss://im.example.com/n{index}",
    "admin_bind": "127.0.0.1:9101",
    "redis_url": "rediss://user:p%40ss@redis.example.com:6380/3",
    "redis_password_file": "/run/secrets/redis",
    "prefix": "{tag}im",
    "handover": "/run/freeim/{port}.sock",
    "path": "/im/ws",
}


def sample(name: str) -> Any:
    option = OPTIONS[name]
    if option.kind == "bool":
        return not option.default
    if option.kind == "choice":
        return next(choice for choice in option.choices if choice != option.default)
    if option.kind in ("int", "float"):
        # Half a timeout is never longer than its interval, and twice an interval never shorter than its timeout.
        return option.default // 2 if name == "ping_timeout" else type(option.default)(option.default * 2 or 7)
    return SAMPLES[name]


def as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def write(folder: Path, text: str) -> str:
    file = folder / "node.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", OPTIONS)
def test_command_line_variable_and_key_give_the_same_config(name: str, tmp_path: Path) -> None:
    option, value = OPTIONS[name], sample(name)
    wanted = Options(**{name: value})
    assert wanted != Options()
    arguments = [option.flag] if option.kind == "bool" else [option.flag, as_text(value)]
    file = write(tmp_path, f"{name} = {toml_value(value)}")
    dashed = write(tmp_path / "..", f"{name.replace('_', '-')} = {toml_value(value)}")
    assert load(arguments, {})[0] == wanted
    assert load([], {option.variable: as_text(value)})[0] == wanted
    assert load(["--config", file], {})[0] == wanted
    assert load([], {"FREEIM_CONFIG": dashed})[0] == wanted


@pytest.mark.parametrize("name", OPTIONS)
def test_each_value_gives_the_same_types_from_all_three_sources(name: str, tmp_path: Path) -> None:
    option, value = OPTIONS[name], sample(name)
    arguments = [option.flag] if option.kind == "bool" else [option.flag, as_text(value)]
    read = [
        load(arguments, {})[0],
        load([], {option.variable: as_text(value)})[0],
        load(["--config", write(tmp_path, f"{name} = {toml_value(value)}")], {})[0],
    ]
    assert {type(getattr(options, name)) for options in read} == {type(value)}


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = write(tmp_path, "backlog = 10\nworkers = 2\ntakeover = true\nids = 'guid'\n")
    environ = {"FREEIM_CONFIG": file, "FREEIM_BACKLOG": "20", "FREEIM_WORKERS": "3"}
    options, command = load(["--backlog", "30", "--no-takeover"], environ)
    assert (options.backlog, options.workers, options.takeover, options.ids) == (30, 3, False, "guid")
    assert options.path == "/ws"
    assert command.origins == {
        "backlog": "--backlog",
        "workers": "FREEIM_WORKERS",
        "takeover": "--no-takeover",
        "ids": f"{file}, key ids",
    }


def test_the_file_of_the_command_line_wins_over_that_of_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "backlog = 10")
    assert load(["--config", file], {"FREEIM_CONFIG": "/nowhere"})[0].backlog == 10


def test_an_empty_variable_counts_as_not_set_and_an_empty_optional_value_as_none(tmp_path: Path) -> None:
    file = write(tmp_path, 'node = "n1"\nprefix = "p"\npublic_url = ""\n')
    environ = {"FREEIM_CONFIG": file, "FREEIM_NODE": "", "FREEIM_WORKERS": ""}
    options, _ = load(["--prefix", ""], environ)
    assert (options.node, options.prefix, options.public_url, options.workers) == ("n1", None, None, 1)


@pytest.mark.parametrize("text", ["true", "1", "YES", "on"])
def test_a_variable_says_yes_in_several_words(text: str) -> None:
    assert load([], {"FREEIM_TAKEOVER": text})[0].takeover is True


@pytest.mark.parametrize("text", ["false", "0", "No", "off"])
def test_a_variable_says_no_in_several_words(text: str) -> None:
    assert load([], {"FREEIM_TAKEOVER": text})[0].takeover is False


def test_nodes_may_be_an_array_or_a_text_with_commas(tmp_path: Path) -> None:
    wanted = ("127.0.0.1:6001", "b:1", "a:1")
    assert load(["--config", write(tmp_path, 'nodes = ["127.0.0.1:6001", "b:1", "a:1"]')], {})[0].nodes == wanted
    assert load(["--config", write(tmp_path, 'nodes = "127.0.0.1:6001, b:1, a:1"')], {})[0].nodes == wanted


def test_a_whole_number_in_the_file_will_do_for_seconds(tmp_path: Path) -> None:
    assert load(["--config", write(tmp_path, "ping_interval = 30")], {})[0].ping_interval == 30


@pytest.mark.parametrize(
    "variable",
    [
        "FREEIM_TEST_REDIS",
        "FREEIM_SERVICE_HOST",
        "FREEIM_SERVICE_PORT",
        "FREEIM_SERVICE_PORT_WS",
        "FREEIM_SERVER_SERVICE_HOST",
        "FREEIM_PORT_6001_TCP",
        "FREEIM_PORT_6001_TCP_ADDR",
        "FREEIM_PORT_6001_TCP_PROTO",
    ],
)
def test_variables_of_tests_and_of_services_are_ignored(variable: str) -> None:
    assert load([], {variable: "10.0.0.1"})[0] == Options()


def test_the_url_that_docker_sets_for_a_service_is_ignored_and_a_number_is_not() -> None:
    assert load([], {"FREEIM_PORT": "tcp://10.0.0.1:6001"})[0] == Options()
    with pytest.raises(ConfigError, match=r"unknown variable FREEIM_PORT\b"):
        load([], {"FREEIM_PORT": "6001"})


def complaint(argv: list[str], environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(argv, environ)
    return str(caught.value)


def test_an_unknown_variable_is_an_error_that_names_the_nearest_one() -> None:
    said = complaint([], {"FREEIM_WORKER": "2"})
    assert said == "the environment holds the unknown variable FREEIM_WORKER; did you mean FREEIM_WORKERS?"


def test_an_unknown_key_is_an_error_that_names_file_and_nearest_key(tmp_path: Path) -> None:
    file = write(tmp_path, "ping-intervall = 3")
    assert complaint(["--config", file], {}) == f"{file}: unknown key 'ping-intervall'; did you mean ping_interval?"


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, "[zzz]\nbind = '127.0.0.1:1'")
    assert complaint(["--config", file], {}).startswith(f"{file}: unknown key 'zzz'; freeim-server --help")


def test_one_option_under_two_spellings_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, "ping_interval = 30\nping-interval = 40")
    assert "'ping_interval' and 'ping-interval' are the same option" in complaint(["--config", file], {})


@pytest.mark.parametrize(
    "argv", [["--ping-intervall", "3"], ["--ping-int", "3"], ["--takeover=yes"], ["bind"], ["--bind"]]
)
def test_a_command_line_that_is_not_understood_is_an_error_that_points_to_the_help(argv: list[str]) -> None:
    assert complaint(argv, {}).endswith("; see freeim-server --help")


def test_a_missing_file_a_folder_and_broken_toml_are_errors_that_name_who_named_the_file(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    said = complaint([], {"FREEIM_CONFIG": missing})
    assert said == f"FREEIM_CONFIG: the file '{missing}' cannot be read: No such file or directory"
    assert complaint(["--config", str(tmp_path)], {}).startswith(f"--config: the file '{tmp_path}' cannot be read")
    assert "is not valid TOML" in complaint(["--config", write(tmp_path, "bind 127.0.0.1")], {})
    broken = tmp_path / "latin.toml"
    broken.write_bytes(b"node = '\xe9'")
    assert "is not valid TOML" in complaint(["--config", str(broken)], {})


@pytest.mark.parametrize(
    ("argv", "environ", "toml", "said"),
    [
        (["--workers", "many"], {}, "", "--workers: workers must be a whole number from 1 to 1024, not 'many'"),
        ([], {"FREEIM_DRAIN": "-1"}, "", "FREEIM_DRAIN: drain must be a number of seconds from 0 to 86400, not -1.0"),
        ([], {}, "takeover = 'yes'", "node.toml, key takeover: takeover must be true or false, not 'yes'"),
        ([], {"FREEIM_TAKEOVER": "si"}, "", "FREEIM_TAKEOVER: takeover must be true or false (1, 0, yes, no"),
        ([], {}, "workers = true", "node.toml, key workers: workers must be a whole number"),
        ([], {}, "workers = '2'", "node.toml, key workers: workers must be a whole number"),
        ([], {}, "max-head = 1e4", "node.toml, key max-head: max_head must be a whole number of bytes"),
        ([], {}, "nodes = [1]", "node.toml, key nodes: nodes must be a list of names"),
        ([], {}, "nodes = 5", "node.toml, key nodes: nodes must be a list of names"),
        ([], {}, "node = 5", "node.toml, key node: node must be a text, not 5"),
        (["--ids", "uuid"], {}, "", "--ids: ids must be int or guid, not 'uuid'"),
        (["--drain", "nan"], {}, "", "--drain: drain must be a number of seconds"),
        (
            ["--bus-queue-limit", "0"],
            {},
            "",
            "--bus-queue-limit: bus_queue_limit must be a whole number of bytes from 1 to 1099511627776,",
        ),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_source(
    argv: list[str], environ: dict[str, str], toml: str, said: str, tmp_path: Path
) -> None:
    if toml:
        argv = ["--config", write(tmp_path, toml)]
    assert said in complaint(argv, environ)


def test_a_contradiction_is_an_error_that_names_both_sources() -> None:
    said = complaint(["--ping-timeout", "30"], {})
    assert said == (
        "ping_timeout (30.0 s) must not be longer than ping_interval (25.0 s) "
        "[ping_timeout: --ping-timeout; ping_interval: its default]"
    )


def test_no_error_ever_shows_the_password_of_the_redis_url() -> None:
    for url in ("http://u:s3cret@h", "redis://u:s3/cret@h:70000", "redis://h?password=s3cret", "redis://:s3cret@h/x"):
        said = complaint([], {"FREEIM_REDIS_URL": url})
        assert "s3" not in said
        assert "cret" not in said
        assert said.startswith("FREEIM_REDIS_URL: redis_url '")


def test_help_and_version_look_at_no_other_source() -> None:
    for action in ("help", "version"):
        assert load([f"--{action}", "--bind", "nonsense"], {"FREEIM_NONSENSE": "1"})[1].action == action
