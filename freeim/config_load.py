"""Reads the options: command line over environment over file over default."""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Never

from freeim.config import GROUPS, OPTIONS, Option, Options
from freeim.embedded.place import FOLDER_VARIABLE
from freeim.errors import ConfigError

CONFIG_VARIABLE: Final = "FREEIM_CONFIG"
TEST_VARIABLES: Final = "FREEIM_TEST_"
"""Variables that begin so steer this project's tests, and a node does not look at them."""
DEMO_VARIABLES: Final = "FREEIM_DEMO_"
"""Variables that begin so are the demo's, which may be started from the same environment."""

# Kubernetes and Docker put such variables into every container for a service that is called "freeim".
_SERVICE_VARIABLE: Final = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_URL: Final = re.compile(r"(tcp|udp|sctp)://")

_TRUE: Final = ("true", "1", "yes", "on")
_FALSE: Final = ("false", "0", "no", "off")

Action = Literal["run", "help", "version", "print-config"]


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line asks for, beside the options themselves.

    Attributes:
        action: What to do.
        origins: Where the value of each option that is not at its default came from.
    """

    action: Action
    origins: Mapping[str, str] = field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        raise ConfigError(f"{message[:1].lower()}{message[1:]}; see freeim-server --help")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. It only collects text: every value is converted and checked in one place, for all sources."""
    parser = _Parser(
        prog="freeim-server",
        usage="freeim-server [OPTION ...]",
        description="Runs a FreeIM node: it holds WebSocket connections and pushes what helpers publish through Redis.",
        epilog="Each option is also a variable (--ping-interval: FREEIM_PING_INTERVAL) and a key of the file given by "
        "--config (ping_interval). Command line over environment over file. Exit codes: 2 configuration, 3 Redis, "
        "4 replaced by another process.",
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    general = parser.add_argument_group("General")
    general.add_argument("--config", metavar="FILE", help=f"TOML file with options (variable: {CONFIG_VARIABLE})")
    general.add_argument(
        "--print-config",
        action="store_const",
        dest="action",
        const="print-config",
        help="print the options in effect as TOML, and where each came from",
    )
    general.add_argument("--version", action="store_const", dest="action", const="version", help="print the version")
    general.add_argument("-h", "--help", action="store_const", dest="action", const="help", help="print this help")
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for option in OPTIONS.values():
        group = groups[option.group]
        text = (option.help + default_note(option)).replace("%", "%%")
        if option.kind == "bool":
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, dest=option.name, help=text)
        else:
            metavar = "|".join(option.choices) or option.metavar
            group.add_argument(option.flag, dest=option.name, metavar=metavar, help=text)
    return parser


def default_note(option: Option) -> str:
    """Return `` [25 s]``, or nothing where the help says what happens without a value."""
    if option.kind == "bool" or option.default in (None, ()):
        return ""
    shown = f"{option.default:g}" if option.kind == "float" else option.default
    return f" [{shown}{' ' + option.unit if option.unit else ''}]"


def load(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Options, Command]:
    """Read the options from a command line, an environment and the file that one of them names.

    Args:
        argv: The command line without the program's name.
        environ: The environment.

    Returns:
        The options, and what else the command line asks for. For help and version nothing else is read.

    Raises:
        ConfigError: The sentence says which source is wrong, and what to do.
    """
    given = vars(build_parser().parse_args(list(argv)))
    action: Action = given.pop("action", "run")
    if action in ("help", "version"):
        return Options(), Command(action)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file, file_origin = given.pop("config", None), "--config"
    if file is None and environ.get(CONFIG_VARIABLE):
        file, file_origin = environ[CONFIG_VARIABLE], CONFIG_VARIABLE
    if file is not None:
        for name, (key, value) in _read_file(file, file_origin).items():
            origins[name] = f"{file}, key {key}"
            values[name] = _from_toml(OPTIONS[name], value)
    for name, text in _read_environment(environ).items():
        origins[name] = OPTIONS[name].variable
        values[name] = _from_text(OPTIONS[name], text, origins[name])
    for name, value in given.items():
        option = OPTIONS[name]
        origins[name] = "--no-" + option.flag[2:] if value is False else option.flag
        values[name] = value if option.kind == "bool" else _from_text(option, value, option.flag)
    try:
        return Options(**values), Command(action, origins)
    except ConfigError as error:
        raise ConfigError(_with_origins(str(error), error.fields, origins), *error.fields) from error


def _with_origins(message: str, fields: Sequence[str], origins: Mapping[str, str]) -> str:
    if len(fields) == 1:
        return f"{origins.get(fields[0], 'by default')}: {message}"
    told = [f"{name}: {origins.get(name, 'its default')}" for name in fields]
    return f"{message} [{'; '.join(told)}]"


def _read_file(file: str, origin: str) -> dict[str, tuple[str, Any]]:
    """Return key as written and value, by the option's name."""
    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{origin}: the file {file!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{origin}: the file {file!r} is not valid TOML: {error}") from error
    found: dict[str, tuple[str, Any]] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in OPTIONS:
            raise ConfigError(f"{file}: unknown key {key!r}{_nearest(name, OPTIONS)}")
        if name in found:
            raise ConfigError(f"{file}: {found[name][0]!r} and {key!r} are the same option; keep one of them")
        found[name] = key, value
    return found


def _read_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are set, by the option's name. An empty variable counts as not set."""
    names = {option.variable: option.name for option in OPTIONS.values()}
    found: dict[str, str] = {}
    for variable, text in environ.items():
        if variable in names:
            if text:
                found[names[variable]] = text
        elif variable.startswith("FREEIM_") and not _is_ignored(variable, text):
            raise ConfigError(f"the environment holds the unknown variable {variable}{_nearest(variable, names)}")
    return found


def _is_ignored(variable: str, text: str) -> bool:
    return (
        variable in (CONFIG_VARIABLE, FOLDER_VARIABLE)
        or variable.startswith((TEST_VARIABLES, DEMO_VARIABLES))
        or _SERVICE_VARIABLE.search(variable) is not None
        or (variable.endswith("_PORT") and _SERVICE_URL.match(text) is not None)
    )


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; freeim-server --help lists all options"


def _from_toml(option: Option, value: Any) -> Any:
    """Return a value of the file in the option's own type; what does not fit is left for the checks to refuse."""
    if option.kind == "list":
        return _split(value) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    return None if option.optional and value == "" else value


def _from_text(option: Option, text: str, origin: str) -> Any:
    """Return what a text of the command line or the environment means."""
    if option.optional and not text:
        return None
    if option.kind == "list":
        return _split(text)
    if option.kind == "bool":
        if text.lower() not in _TRUE + _FALSE:
            raise ConfigError(f"{origin}: {option.name} must be true or false (1, 0, yes, no, on, off), not {text!r}")
        return text.lower() in _TRUE
    if option.kind in ("int", "float"):
        try:
            return int(text) if option.kind == "int" else float(text)
        except ValueError:
            # Not a number: the check of the option says so, with the unit and the range.
            return text
    return text


def _split(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",")) if text.strip() else ()
