"""The options as text: --print-config, --help, docs/options.md."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from freeim.config import OPTIONS, Options
from freeim.config_load import build_parser, load
from freeim.config_show import config_toml, options_page, toml_value
from tests.cli.test_config_sources import sample

PAGE = Path(__file__).parents[2] / "docs" / "options.md"


def test_the_page_of_options_is_the_one_made_from_the_dataclass() -> None:
    assert PAGE.read_text(encoding="utf-8") == options_page()


def test_the_page_of_options_names_each_option_and_variable() -> None:
    for option in OPTIONS.values():
        assert f"`{option.flag}" in options_page()
        assert f"`{option.variable}`" in options_page()


def test_the_help_fits_80_columns_and_names_each_option_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    squeezed = " ".join(text.split())
    for option in OPTIONS.values():
        assert option.flag in text
        if option.kind == "int":
            assert f"[{option.default}" in squeezed


def test_the_printed_config_reads_back_as_the_same_options(tmp_path: Path) -> None:
    values = {
        name: sample(name) for name in OPTIONS if name not in ("redis_url", "redis_password_file", "nodes", "bind")
    }
    options = Options(**values, nodes=("im-0", "im-1", 'q"\\\u00e9😀'), bind="127.0.0.1:7001").for_worker()
    file = tmp_path / "node.toml"
    file.write_text(config_toml(options, {}), encoding="utf-8")
    assert load(["--config", str(file)], {})[0] == options


@pytest.mark.parametrize("text", ["", '"', "\\", "\x00\x1f\x7f\u0085", "\u00e9\U0001f600", "a\nb # c"])
def test_any_text_survives_as_toml(text: str) -> None:
    assert tomllib.loads(f"key = {toml_value(text)}") == {"key": text}


def test_the_printed_config_says_where_each_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "odd\nname.toml"
    file.write_text("backlog = 5", encoding="utf-8")
    options, command = load(["--takeover"], {"FREEIM_IDS": "guid", "FREEIM_CONFIG": str(file)})
    lines = config_toml(options, command.origins).splitlines()
    assert "takeover = true  # --takeover" in lines
    assert 'ids = "guid"  # FREEIM_IDS' in lines
    assert f"backlog = 5  # {tmp_path}/odd?name.toml, key backlog" in lines
    assert "workers = 1  # default" in lines
    assert "# node is not set  # default" in lines


def test_the_printed_config_masks_the_password() -> None:
    options, command = load(["--redis-url", "redis://user:s3cret@h/1"], {})
    text = config_toml(options, command.origins)
    assert "s3cret" not in text
    assert tomllib.loads(text)["redis_url"] == "redis://user:***@h/1"


def test_the_printed_config_names_each_node_that_would_run() -> None:
    text = config_toml(Options(workers=2, public_url="wss://h/{index}"), {})
    assert "# 0: 127.0.0.1:6001, listens on 127.0.0.1:6001, wss://h/0/ws" in text
    assert "# 1: 127.0.0.1:6002, listens on 127.0.0.1:6002, wss://h/1/ws" in text
