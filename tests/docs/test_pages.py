"""What the pages show works, and where they point there is something."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from freeim import AsyncImHelper, CloseCode, Event
from freeim.config import OPTIONS
from freeim.config_load import CONFIG_VARIABLE
from tests.cli.command import Server
from tests.docs.pages import PAGES, ROOT, Block, Page, blocks_in, options_of
from tests.node.harness import until
from tests.servers import RedisServer, ServerError, free_port

DEPLOYMENT = Page("docs/deployment.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_of_a_page_leads_somewhere(page: Page) -> None:
    anchors = {other.name: other.anchors for other in PAGES}
    for link in page.links:
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page.name).parent / file if file else ROOT / page.name
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors[str(target.resolve().relative_to(ROOT))], f"{page.name}: {link}"


@pytest.mark.parametrize("block", blocks_in("sh"), ids=str)
def test_each_command_of_a_page_exists_with_its_options(block: Block) -> None:
    for line in block.lines:
        check_command(shlex.split(line))


def check_command(words: list[str]) -> None:
    environ = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        assert name in {CONFIG_VARIABLE, *(option.variable for option in OPTIONS.values())}
        environ[name] = value
    program, *arguments = words
    if program == "freeim-server":
        options_of(arguments, environ)
    elif program == "make":
        target, *variables = arguments
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert all(variable.startswith("ARGS=") for variable in variables)
    elif program == "pip":
        command, *packages = arguments
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [f"freeim[{extra}]" for extra in project["optional-dependencies"]]
        assert command == "install"
        here = [name.replace("freeim", ".") for name in extras]
        assert set(packages) <= {"freeim", ".", *extras, *here, "fastapi"}
    elif program == "python":
        # tests/demo and tests/bench/test_instructions.py run them.
        assert arguments in (["-m", "freeim.demo"], ["-m", "bench.instructions"])
    elif program == "uvicorn":
        assert arguments == ["first:app"]  # test_first_program.py runs it
    else:
        pytest.fail(f"no test knows the command {program!r}")


@pytest.mark.parametrize("block", blocks_in("python"), ids=str)
def test_each_program_of_a_page_is_python(block: Block) -> None:
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", blocks_in("toml"), ids=str)
def test_each_file_of_options_is_read_by_the_command(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(block.text, encoding="utf-8")
    options_of(["--config", str(file)])


def test_the_units_of_systemd_start_the_command_with_the_file_that_the_page_shows(tmp_path: Path) -> None:
    start = "/opt/freeim/bin/freeim-server --config /etc/freeim/node.toml"
    commands = []
    for block in DEPLOYMENT.written_in("ini"):
        unit = configparser.ConfigParser()
        unit.read_string(block.text)
        commands.append(unit["Service"]["ExecStart"])
    assert commands[0] == start
    assert "`/etc/freeim/node.toml`" in DEPLOYMENT.prose
    [file] = [block for block in DEPLOYMENT.written_in("toml") if "redis_password_file" in block.text]
    (tmp_path / "node.toml").write_text(file.text, encoding="utf-8")
    for command in commands:
        options_of(shlex.split(command.replace("/etc/freeim/node.toml", str(tmp_path / "node.toml")))[1:])
    assert commands[1].startswith(f"{start} --handover ")


@pytest.mark.parametrize("block", [*blocks_in("nginx"), *blocks_in("caddyfile")], ids=str)
def test_each_proxy_hands_the_path_of_a_node_to_its_port(block: Block) -> None:
    text = block.text
    assert text.count("{") == text.count("}")
    [page] = [page for page in PAGES if page.name == block.page]
    command = next(line for each in page.written_in("sh") for line in each.lines if "{index}" in line)
    options = options_of(shlex.split(command)[1:])
    found = re.findall(r"(?:location|handle_path) (/\w+)/\S* \{\s*(?:proxy_pass|reverse_proxy) (\S+?);?\s", text)
    assert 1 < len(found) <= options.workers
    for index, (path, target) in enumerate(found):
        worker = options.for_worker(index)
        assert worker.public_url == f"wss://im.example.com{path}"
        # nginx strips the path only where proxy_pass ends with a slash.
        assert target == (worker.bind if block.language == "caddyfile" else f"http://{worker.bind}/")


def test_redis_takes_the_settings_of_the_page() -> None:
    [block] = DEPLOYMENT.written_in("conf")
    arguments = [word for line in block.lines for word in f"--{line}".split()]
    with RedisServer(args=arguments) as server:
        assert server.command("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"
        assert server.command("CONFIG", "GET", "tracking-table-max-keys")[1] == b"0"
        assert b"pubsub 268435456 134217728 30" in server.command("CONFIG", "GET", "client-output-buffer-limit")[1]


@pytest.mark.parametrize("kind", ["pubsub", "stream"])
async def test_nodes_and_apps_can_do_all_they_do_with_the_users_of_the_page(
    kind: str, own_redis_server: RedisServer
) -> None:
    [block] = DEPLOYMENT.written_in("redis")
    for line in block.lines:
        assert own_redis_server.command(*line.split()) == b"OK"
    address = f"SECRET@127.0.0.1:{own_redis_server.port}"
    command = ("--bind", f"127.0.0.1:{free_port()}", "--redis-url", f"redis://freeim-node:{address}", "--bus", kind)
    events: list[Event] = []
    in_group: list[Event] = []
    async with (
        AsyncImHelper(f"redis://freeim-app:{address}") as helper,
        helper.event_bus(events.append, events.append) as bus,
        helper.event_bus(in_group.append, in_group.append, group="shop") as member,
    ):
        assert await bus.wait_subscribed(5.0)
        await until(lambda: member.leading, "it leads")
        with Server(*command) as killed:
            assert "CLIENT TRACKING" in killed.banner()
            await use_everything(helper)
            await connect(await helper.prev_connect_server(3))
        with Server(*command) as node:
            assert node.logged("took out 1 connections")
            async with connect(await helper.prev_connect_server(5)) as terminal:
                await helper.join_chan(5, "room")
                await helper.send_chan_message(0, "room", "now the node knows")
                while await terminal.recv() != '"now the node knows"':
                    pass  # with a stream, what came in the last moment of the killed node comes again
                own_redis_server.command("FLUSHALL")
                await until(lambda: own_redis_server.hash("im_v2_wsOnline") == {"5": "1"}, "put back")
                assert await helper.get_chan_client_list("room") == [5]
            assert node.logged("put 1 connections back")
            node.tell(signal.SIGTERM)
            assert node.wait() == 0
        await until(lambda: [event.client_id for event in events] == [1, 1, 3, 3, 5, 5, 5], "seven events")
        await until(lambda: len(in_group) == 7, "the same in a group")
        # A lease that seems too long, and one that is given back.
        own_redis_server.command("SET", "im_v2_wsGroupother", "dead", "PX", 100_000)
        async with helper.event_bus(group="other") as other:
            await until(lambda: other.leading, "the lease was cut to its length")
        assert own_redis_server.command("EXISTS", "im_v2_wsGroupother") == 0
    refused = {entry[entry.index(b"object") + 1] for entry in own_redis_server.command("ACL", "LOG")}
    assert refused <= {b"client", b"client|setinfo"}, "what redis-py tries, as the page says"


async def use_everything(helper: AsyncImHelper) -> None:
    await helper.join_chan(1, "room", "hall")
    async with connect(await helper.prev_connect_server(1)) as terminal:
        await helper.send_chan_message(0, "room", "to the room")
        await helper.send_message(2, [1, 2], "to both", receipt=True, report_offline=True)
        await helper.send_broadcast_message("to all")
        assert [await terminal.recv() for _ in range(3)] == ['"to the room"', '"to both"', '"to all"']
        assert await helper.has_online(1)
        assert await helper.has_online_many([1, 2]) == [True, False]
        assert await helper.get_client_list_by_online() == [1]
        await helper.leave_chan(1, "hall")
        await helper.clear_chan_client("room")
        assert await helper.get_chan_list() == {"room": 1}
        assert await helper.get_chan_client_list("room") == [1]
        assert await helper.get_chan_list_by_client_id(1) == ["room"]
        assert await helper.get_chan_online("room") == 1
        await helper.leave_chan_clients("room", 1)
        await helper.force_offline(1)
        await terminal.wait_closed()


@pytest.mark.parametrize("user", ["freeim-node", "freeim-app"])
def test_the_users_of_the_page_can_do_nothing_else(user: str, own_redis_server: RedisServer) -> None:
    [block] = DEPLOYMENT.written_in("redis")
    for line in block.lines:
        own_redis_server.command(*line.split())
    with own_redis_server.wire() as wire:
        wire("AUTH", user, "SECRET")
        for refused in (["SET", "other", 1], ["PUBLISH", "other", 1], ["KEYS", "*"], ["CONFIG", "SET", "timeout", 1]):
            with pytest.raises(ServerError, match="NOPERM"):
                wire(*refused)


def test_the_reference_of_the_helper_is_the_one_made_from_the_docstrings() -> None:
    program = [sys.executable, str(ROOT / "tools" / "helper_reference.py")]
    made = subprocess.run(program, capture_output=True, encoding="utf-8", check=True).stdout
    assert made == Page("docs/helper-reference.md").text, "make docs writes it"


def test_the_page_of_the_protocol_names_each_close_code() -> None:
    rows = Page("docs/protocol.md").rows
    codes = {int(row[0][:4]) for row in rows if len(row) == 2 and re.match(r"\d{4}\b", row[0])}
    assert codes == set(CloseCode)
