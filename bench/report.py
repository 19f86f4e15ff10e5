"""Writes what was found: JSON with every value, a Markdown table of medians, and plots where matplotlib is."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import redis

from bench.build import HERE, PROGRAMS, program
from bench.outcome import Figure, Outcome
from bench.stand import Settings

METHOD = (
    "A ratio compares a node with the yardstick, a bare send(2) loop in C, measured in turn in the same run; the CPU "
    "is that of the serving process, user and system. Given are medians of {rounds} rounds, with the least and the "
    "greatest. Every frame was verified by the load generator."
)
PACKAGES = ("freeim", "picows", "uvloop", "hiredis", "redis", "Cython")


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed here."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def describe(settings: Settings) -> dict[str, Any]:
    """Return where and how the figures were measured."""
    with redis.Redis.from_url(settings.url) as client:
        server: Any = client.info("server")
    versions = {"Python": platform.python_version(), "system": platform.platform()}
    valkey = server.get("valkey_version")
    versions["Valkey" if valkey else "Redis"] = valkey or server["redis_version"]
    versions |= versions_of(PACKAGES)
    versions["compiler"] = _run(os.environ.get("CC") or "cc", "--version").split("\n")[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _run("git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12").strip() or "unknown",
        "machine": _machine(),
        "versions": versions,
        "method": METHOD.format(rounds=settings.rounds),
        "settings": {"connections": settings.connections, "size": settings.size, "rounds": settings.rounds}
        | {"repeat": settings.repeat, "workers": settings.workers, "fifty": settings.fifty}
        | {"latency_connections": settings.latency_connections, "soak": settings.soak},
        "programs": {name: Path(program(name)).name for name in PROGRAMS},
    }


def as_json(where: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Return the whole report as JSON."""
    found = [
        {
            "scenario": outcome.scenario,
            "size": outcome.size,
            "expected": outcome.expected,
            "received": outcome.received,
            "faults": dict(outcome.faults),
            "generator_busy": round(outcome.busiest, 3),
            "sender_busy": round(outcome.sender, 3),
            "left_out": outcome.left_out,
            "objection": outcome.objection,
            "notes": outcome.notes,
            "figures": {
                figure.name: {
                    "median": figure.median,
                    "min": figure.spread[0],
                    "max": figure.spread[1],
                    "values": list(figure.values),
                    "unit": figure.unit,
                    "better": figure.better,
                    "meaning": figure.meaning,
                }
                for figure in outcome.figures
            },
        }
        for outcome in outcomes
    ]
    return json.dumps(where | {"outcomes": found}, indent=1, ensure_ascii=False) + "\n"


def as_markdown(where: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Return a page with a table for each scenario. Figures that may not be quoted are not in it, but the reason is."""
    machine, versions = where["machine"], where["versions"]
    lines = [
        f"# Measured on {where['date']}, commit {where['commit']}",
        "",
        f"{where['method']} {machine['cores']} cores, {machine['cpu']}, {machine['memory_gib']} GiB; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]
    for outcome in outcomes:
        lines += ["", f"## {outcome.scenario}", "", f"{outcome.size}. "]
        if outcome.objection:
            lines[-1] += f"**No figures:** {outcome.objection}."
            continue
        lines[-1] += (
            f"All {outcome.received:,} messages and handshakes arrived; the load generator was busy for "
            f"{outcome.busiest:.0%} of a core at most."
        )
        lines += [f"\n**Left out:** {why}." for why in outcome.left_out]
        if outcome.notes:
            lines += ["", *(f"- {note}" for note in outcome.notes)]
        if not outcome.figures:
            continue
        lines += ["", "| figure | median | min–max | better | what it is |", "|---|---|---|---|---|"]
        lines += [_row(figure) for figure in outcome.figures]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _row(figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    low, high = figure.spread
    middle = f"**{number(figure.median)}{unit}**"
    return f"| `{figure.name}` | {middle} | {number(low)}–{number(high)} | {figure.better} | {figure.meaning} |"


def write(folder: Path, where: dict[str, Any], outcomes: Sequence[Outcome]) -> list[Path]:
    """Write the report into a folder, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"latest.json": as_json(where, outcomes), "latest.md": as_markdown(where, outcomes)}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files] + _plot(folder, outcomes)


def _plot(folder: Path, outcomes: Sequence[Outcome]) -> list[Path]:
    """Draw the ratios, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return []
    figures = [
        figure
        for outcome in outcomes
        if outcome.objection is None
        for figure in outcome.figures
        if figure.name.endswith("_ratio")
    ]
    if not figures:
        return []
    canvas = Canvas(figsize=(8, 1 + 0.4 * len(figures)), layout="constrained")
    axes = canvas.subplots()
    names = [f"{figure.name} ({figure.better} is better)" for figure in figures]
    medians = [figure.median for figure in figures]
    low = [figure.median - figure.spread[0] for figure in figures]
    high = [figure.spread[1] - figure.median for figure in figures]
    axes.barh(names, medians, xerr=[low, high])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("ratio to the yardstick: median, least and greatest")
    target = folder / "latest.svg"
    canvas.savefig(target)
    return [target]


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {"cores": len(os.sched_getaffinity(0)), "cpu": cpu, "memory_gib": round(memory, 1)}


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
