"""Prints docs/helper-reference.md: every public name of the helper, out of its docstrings.

``python tools/helper_reference.py > docs/helper-reference.md`` (``make docs`` does it).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import griffe

ROOT: Final = Path(__file__).resolve().parents[1]

HEAD: Final = """# Reference of the helper

<!-- Made by `make docs` out of the docstrings; edit those in freeim/ instead. -->

[helper.md](helper.md) explains; this page lists every method. Those of `AsyncImHelper` are the same and are awaited,
except `event_bus` and `batch`, which are used with `async with`.
"""


def page() -> str:
    """Return the page."""
    package = griffe.load("freeim", search_paths=[ROOT], docstring_parser="google", allow_inspection=False)
    sync, asynchronous = package["helper.ImHelper"], package["helper_async.AsyncImHelper"]
    parts = [HEAD, *_class(sync), f"```text\n{_signature('ImHelper', sync['__init__'])}\n```\n"]
    parts += ["## Methods\n", *_methods(sync)]
    parts += ["## Only in `AsyncImHelper`\n", *_methods(asynchronous, without=sync)]
    for name in ("event_bus.EventBus", "event_bus_async.AsyncEventBus"):
        parts += [*_class(package[name]), *_methods(package[name])]
    for name in ("batch.Batch", "commands.Published", "event_bus.Event", "commands.SendEvent", "envelope.Raw"):
        parts += _class(package[name])
    return "\n".join(parts)


def _class(kind: Any) -> list[str]:
    return [f"## `{kind.name}`\n", *_docstring(kind)]


def _methods(kind: Any, without: Any = None) -> list[str]:
    parts = []
    for name, member in kind.members.items():
        if name.startswith("_") or (without is not None and name in without.members):
            continue
        if member.is_function:
            parts += [f"### `{name}`\n", f"```text\n{_signature(name, member)}\n```\n", *_docstring(member)]
        elif "property" in member.labels:
            parts += [f"### `{name}`\n", *_docstring(member)]
    return parts


def _signature(name: str, function: Any) -> str:
    parameters = []
    star = False
    for each in function.parameters:
        if each.name == "self":
            continue
        if each.kind is griffe.ParameterKind.keyword_only and not star:
            parameters.append("*")
            star = True
        prefix = "*" if each.kind is griffe.ParameterKind.var_positional else ""
        default = "" if each.default is None or prefix else f" = {each.default}"
        parameters.append(f"{prefix}{each.name}: {each.annotation}{default}")
    returned = function.annotation
    line = f"{name}({', '.join(parameters)})" + (f" -> {returned}" if returned and str(returned) != "None" else "")
    if len(line) <= 100:
        return line
    body = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{name}(\n{body})" + line[line.rindex(")") + 1 :]


def _docstring(member: Any) -> list[str]:
    if member.docstring is None:
        return []
    parts = []
    for section in member.docstring.parsed:
        if section.kind is griffe.DocstringSectionKind.text:
            parts.append(_markdown(section.value) + "\n")
            continue
        rows = []
        for each in section.value:
            what = getattr(each, "name", "") or ""
            if section.kind is griffe.DocstringSectionKind.raises:
                what = str(each.annotation)
            rows.append((f"- `{what}`: " if what else "") + _markdown(each.description).replace("\n", "\n  "))
        parts.append(f"**{section.kind.value.capitalize()}**\n\n" + "\n".join(rows) + "\n")
    return parts


def _markdown(text: str) -> str:
    """Turn the marks of reStructuredText that docstrings use into those of Markdown."""
    text = text.replace("``", "`")
    text = re.sub(r"::\n\n((?:    .*\n?|\n)+)", lambda match: f":\n\n```python\n{_dedent(match[1])}```\n\n", text)
    return text.strip()


def _dedent(block: str) -> str:
    return "".join(f"{line.removeprefix('    ')}\n" for line in block.strip("\n").split("\n"))


if __name__ == "__main__":
    print(page(), end="")
