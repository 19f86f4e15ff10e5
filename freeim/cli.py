"""The command ``freeim-server``: options, logging and exit codes around `freeim.Node`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Sequence

from freeim.config import Options
from freeim.config_load import build_parser, load
from freeim.config_show import config_toml
from freeim.errors import ConfigError, RedisUnavailable
from freeim.exits import Exit
from freeim.log import configure
from freeim.option_files import read_files
from freeim.reload import Sources

# What a node needs beside freeim itself, and what is imported only once a node is to run.
_NEEDED = ("freeim._core", "hiredis", "picows", "prometheus_client", "uvloop")


_log = logging.getLogger("freeim.server")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: The command line without the program's name; that of the process when it is left out.
    """
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except (ConfigError, RedisUnavailable) as error:
        print(f"freeim-server: {error}", file=sys.stderr)
        return _exit_code(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _main(argv: Sequence[str]) -> int:
    options, command = load(argv, os.environ)
    if command.action == "help":
        print(build_parser().format_help(), end="")
    elif command.action == "version":
        print(f"freeim-server {version()} ({platform.python_implementation()} {platform.python_version()})")
    elif command.action == "print-config":
        print(config_toml(options, command.origins), end="")
    else:
        configure(options.log_level, options.log_format)
        try:
            return _run(options, argv)
        except (ConfigError, RedisUnavailable) as error:
            if options.log_format == "text":
                raise  # `main` says it, as it says what is wrong with the options
            _log.error("%s", error)
            return _exit_code(error)
    return Exit.STOPPED


def _run(options: Options, argv: Sequence[str]) -> int:
    check_platform()
    read_files(options)  # a missing file is told now, and once, not by each worker
    options = options.for_embedded()
    sources = Sources(argv, os.environ, options)
    if options.workers > 1:
        from freeim.supervisor import supervise

        return supervise(options, _announce, sources)
    from freeim.serve import serve

    code = serve(options.for_worker(), _announce, sources=sources)
    return Exit.STOPPED if code == Exit.HANDED_OVER else code


def _exit_code(error: ConfigError | RedisUnavailable) -> Exit:
    return Exit.CONFIG if isinstance(error, ConfigError) else Exit.REDIS


def version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("freeim")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def check_platform() -> None:
    """Check that a node can run here.

    Raises:
        ConfigError: It cannot; the sentence says what is missing.
    """
    if sys.implementation.name != "cpython" or sys.platform == "win32":
        raise ConfigError(
            f"a node needs CPython on Linux or macOS, and this is {platform.python_implementation()} on "
            f"{platform.system()}; the helper works here"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "a node needs CPython on Linux or macOS with freeim's compiled part and its dependencies, and "
            f"{', '.join(missing)} is missing here; install freeim from a wheel for this platform, or with a C compiler"
        )


def _announce(banner: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever reads the banner may stop reading
        print(banner, flush=True)


if __name__ == "__main__":
    sys.exit(main())
