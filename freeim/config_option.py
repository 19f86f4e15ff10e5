"""What one option of a node is: its field, what is known about it, and which values it takes."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from freeim import config_checks as checks
from freeim.errors import ConfigError
from freeim.origins import check_origin
from freeim.redis_url import mask_redis_url, parse_redis_url

PLACE: Final = "Where it listens, and what it is called"
REDIS: Final = "Redis"
PROTOCOL: Final = "Protocol and names"
RUNNING: Final = "Running"
ADMISSION: Final = "Who gets in"
LIMITS: Final = "Time limits and sizes"
GROUPS: Final = (PLACE, REDIS, PROTOCOL, RUNNING, ADMISSION, LIMITS)
"""The headings of --help and of docs/options.md, in order."""


def option(
    default: object,
    group: str,
    text: str,
    *,
    reload: bool,
    metavar: str = "",
    unit: str = "",
    secret: bool = False,
    minimum: float = 0,
    maximum: float = math.inf,
) -> Any:
    """Return the field of an option.

    Args:
        default: Its value where nobody gives one.
        group: Its heading, one of `GROUPS`.
        text: Its help.
        reload: Whether a reload applies a new value; where not, it takes a restart.
        metavar: What stands for its value in the help.
        unit: The unit of a number.
        secret: Whether its value holds a password.
        minimum: The least number.
        maximum: The largest number.
    """
    return field(
        default=default,
        metadata={
            "group": group,
            "help": text,
            "metavar": metavar,
            "unit": unit,
            "reload": reload,
            "secret": secret,
            "minimum": minimum,
            "maximum": maximum,
        },
    )


def seconds(default: float, text: str, *, reload: bool, group: str = LIMITS, minimum: float = 0.01) -> Any:
    """A time."""
    return option(default, group, text, reload=reload, metavar="SECONDS", unit="s", minimum=minimum, maximum=86_400)


def size(default: int, text: str, *, reload: bool, minimum: int = 0, maximum: int = 2**40) -> Any:
    """A number of bytes."""
    return option(default, LIMITS, text, reload=reload, metavar="BYTES", unit="bytes", minimum=minimum, maximum=maximum)


def count(text: str, *, reload: bool, maximum: int = 2**31 - 1) -> Any:
    """A number that may be limited, and is not by default."""
    return option(0, ADMISSION, text, reload=reload, metavar="N", maximum=maximum)


@dataclass(frozen=True, slots=True)
class Option:
    """What is known about one field of `Options`; `option` has the rest of its attributes.

    Attributes:
        kind: What its values are.
        optional: Whether None is one of them.
        choices: All of them, where there is a choice.
    """

    name: str
    kind: Literal["text", "list", "choice", "bool", "int", "float"]
    optional: bool
    choices: tuple[str, ...]
    default: Any
    group: str
    help: str
    metavar: str
    unit: str
    reload: bool
    secret: bool
    minimum: float
    maximum: float

    @property
    def flag(self) -> str:
        """The command-line option."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "FREEIM_" + self.name.upper()

    def shown(self, value: object) -> str:
        """Return a value as it may be shown to anybody: as Python writes it, without the password."""
        return repr(mask_redis_url(value) if self.secret and isinstance(value, str) else value)


def describe(options: type) -> Mapping[str, Option]:
    """Return every option by name, in the order of the fields.

    Args:
        options: The dataclass of all options, made of the fields that `option` and its like return.
    """
    hints = typing.get_type_hints(options)
    kinds: dict[object, Literal["text", "list", "bool", "int", "float"]] = {
        str: "text",
        str | None: "text",
        tuple[str, ...]: "list",
        bool: "bool",
        int: "int",
        float: "float",
    }
    found: dict[str, Option] = {}
    for entry in dataclasses.fields(options):
        hint = hints[entry.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        found[entry.name] = Option(
            name=entry.name,
            kind="choice" if choices else kinds[hint],
            optional=hint == str | None,
            choices=choices,
            default=entry.default,
            **entry.metadata,
        )
    return MappingProxyType(found)


_CHECKS: Final[dict[str, Callable[[str], object]]] = {
    "bind": checks.split_bind,
    "admin_bind": checks.check_admin_bind,
    "node": checks.check_template,
    "public_url": checks.check_template,
    "path": checks.check_path,
    "prefix": checks.check_prefix,
    "handover": checks.check_template,
}


_LISTS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "nodes": ("names", checks.check_node_name),
    "origins": ("origins", check_origin),
    "trusted_proxies": ("addresses and networks", checks.check_network),
}


def check_text(name: str, check: Callable[[str], object], value: str) -> None:
    """Check a text.

    Raises:
        ConfigError: Of `check`'s ValueError, whose text is the end of a sentence.
    """
    try:
        check(value)
    except ValueError as error:
        raise ConfigError(f"{name} {error}", name) from None


def check_value(option: Option, value: object) -> None:
    """Check the type and the range of one value.

    Raises:
        ConfigError: It is not a value of this option.
    """
    name = option.name
    if value is None and option.optional:
        return
    if option.kind in ("int", "float"):
        _check_number(option, value)
    elif option.kind == "bool":
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, not {value!r}", name)
    elif option.kind == "choice":
        if value not in option.choices:
            raise ConfigError(f"{name} must be {' or '.join(option.choices)}, not {value!r}", name)
    elif option.kind == "list":
        _check_list(name, value)
    elif not isinstance(value, str):
        raise ConfigError(f"{name} must be a text, not {value!r}", name)
    elif name == "redis_url":
        try:
            parse_redis_url(value)
        except ValueError as error:
            raise ConfigError(f"redis_url {option.shown(value)} is not usable: {error}", name) from None
    elif name in _CHECKS:
        check_text(name, _CHECKS[name], value)


def _check_number(option: Option, value: object) -> None:
    whole = option.kind == "int"
    # bool is an int to Python, and not to anybody who writes "workers = true".
    good_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good_type or not option.minimum <= value <= option.maximum:  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        unit = f" of {'seconds' if option.unit == 's' else option.unit}" if option.unit else ""
        raise ConfigError(
            f"{option.name} must be {kind}{unit} from {option.minimum} to {option.maximum}, not {value!r}", option.name
        )


def _check_list(name: str, value: object) -> None:
    kind, check = _LISTS[name]
    if not isinstance(value, tuple) or not all(isinstance(entry, str) for entry in value):
        raise ConfigError(f"{name} must be a list of {kind} (in Python a tuple of str), not {value!r}", name)
    for entry in value:
        check_text(name, check, entry)
    twice = sorted({entry for entry in value if value.count(entry) > 1})
    if twice:
        raise ConfigError(f"{name} holds {', '.join(twice)} more than once; each is listed once", name)
