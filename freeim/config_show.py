"""The options as text: ``--print-config``, and docs/options.md, which ``python -m freeim.config_show`` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from freeim.config import GROUPS, OPTIONS, Option, Options
from freeim.config_load import CONFIG_VARIABLE, DEMO_VARIABLES, TEST_VARIABLES
from freeim.embedded.place import FOLDER_VARIABLE
from freeim.redis_url import mask_redis_url


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(toml_value(entry) for entry in value)}]"
    if isinstance(value, str):
        # JSON's escapes are TOML's too; only DEL, which JSON lets through, is forbidden in TOML.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def config_toml(options: Options, origins: Mapping[str, str]) -> str:
    """Return all options as TOML that ``--config`` reads again, the password masked.

    Args:
        options: The options in effect.
        origins: Where each that is not at its default came from.
    """
    lines = [f"# freeim-server, options in effect ({CONFIG_VARIABLE} or --config reads this format)"]
    for group in GROUPS:
        lines += ["", f"# {group}"]
        lines += [_toml_line(option, options, origins) for option in OPTIONS.values() if option.group == group]
    lines += ["", "# Nodes that this command runs"]
    for index in range(options.workers):
        worker = options.for_worker(index)
        name = worker.node or "(named after its port)"
        lines.append(f"# {index}: {name}, listens on {worker.bind}, {worker.public_url or f'ws://{name}'}{worker.path}")
    return "\n".join(lines) + "\n"


def _toml_line(option: Option, options: Options, origins: Mapping[str, str]) -> str:
    value = getattr(options, option.name)
    # A comment is one line, whatever characters a file's name holds.
    origin = "".join(char if char.isprintable() else "?" for char in origins.get(option.name, "default"))
    if value is None:
        return f"# {option.name} is not set  # {origin}"
    shown = toml_value(mask_redis_url(value) if option.secret else value)
    return f"{option.name} = {shown}  # {origin}"


def options_page() -> str:
    """Return docs/options.md, the page of all options."""
    lines = [
        "# Options of freeim-server",
        "",
        "<!-- Made by `python -m freeim.config_show > docs/options.md`; edit freeim/config.py instead. -->",
        "",
        "Each option can be given in three ways. The command line wins over the environment, the environment over the",
        f"file that `--config FILE` (or `{CONFIG_VARIABLE}`) names, the file over the default:",
        "",
        "```",
        "freeim-server --ping-interval 30",
        "FREEIM_PING_INTERVAL=30 freeim-server",
        "echo 'ping_interval = 30' > node.toml; freeim-server --config node.toml",
        "```",
        "",
        "`freeim-server --print-config` prints the options in effect and where each came from, with passwords masked.",
        f"An unknown option, variable or key is an error, except `{FOLDER_VARIABLE}` (the folder of the embedded",
        f"Redis), variables that begin with `{TEST_VARIABLES}` or `{DEMO_VARIABLES}`, and those that Kubernetes and",
        "Docker set for a service called `freeim` (`FREEIM_SERVICE_HOST`, `FREEIM_PORT=tcp://…` and the like). An",
        "empty variable counts as not set.",
        "On the command line, `--no-takeover` is the opposite of `--takeover`.",
        "",
        "On `SIGHUP` a server reads all of this again and takes new values of the options with a ↻, without closing a",
        "connection; the others need a restart. [Deployment](deployment.md#reload) says how.",
    ]
    for group in GROUPS:
        lines += ["", f"## {group}", "", "| option | variable | default | meaning |", "|---|---|---|---|"]
        lines += [_table_row(option) for option in OPTIONS.values() if option.group == group]
    lines += [
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | stopped by SIGTERM, Ctrl-C, or the end of the terminal that it was started on |",
        "| 1 | a defect; the log holds the traceback |",
        "| 2 | the configuration is wrong, the address is taken, no Redis can be started, or no node can run here |",
        "| 3 | Redis cannot be reached, or refuses |",
        "| 4 | another process took the node's name |",
        "| 130 | a second Ctrl-C, or one before the node ran |",
    ]
    return "\n".join(lines) + "\n"


def _table_row(option: Option) -> str:
    if option.default in (None, ()):
        default = ""
    else:
        default = f"`{toml_value(option.default)}`" + (f" {option.unit}" if option.unit else "")
    value = "|".join(option.choices) or option.metavar
    usage = f"{option.flag} {value}".strip()
    cells = (f"`{usage}`{' ↻' if option.reload else ''}", f"`{option.variable}`", default, option.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(options_page(), end="")
