"""The options of a node. `Options` is the only home of each option's default, unit and help."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

from freeim import config_checks as checks
from freeim.bus_mode import STREAM_LENGTH, BusMode
from freeim.config_option import (
    ADMISSION,
    GROUPS,
    LIMITS,
    PLACE,
    PROTOCOL,
    REDIS,
    RUNNING,
    Option,
    check_text,
    check_value,
    describe,
)
from freeim.config_option import count as _count
from freeim.config_option import option as _option
from freeim.config_option import seconds as _seconds
from freeim.config_option import size as _bytes
from freeim.errors import ConfigError
from freeim.names import IdKind
from freeim.redis_url import parse_redis_url, with_password

__all__ = ["GROUPS", "OPTIONS", "LogFormat", "LogLevel", "Option", "Options", "PerClientPolicy"]

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
PerClientPolicy = Literal["reject", "replace-oldest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every option of a node. Each field is a command-line option, an environment variable and a key of the file.

    Raises:
        ConfigError: A value is of the wrong type or out of range, or two values contradict each other.
    """

    bind: str = _option(
        "127.0.0.1:6001",
        PLACE,
        "Address and port to listen on; IPv6 in brackets; 0.0.0.0 is every address. "
        "With several workers, worker N listens on this port + N.",
        metavar="HOST:PORT",
        reload=False,
    )
    node: str | None = _option(
        None,
        PLACE,
        "This node's name in the list of nodes, the same that a .NET helper has in Servers. May hold {index}, {port} "
        "and {hostname}. Left out, it is the bind address (with 0.0.0.0, {hostname}:{port}).",
        metavar="NAME",
        reload=False,
    )
    nodes: tuple[str, ...] = _option(
        (),
        PLACE,
        "The names of all nodes on all hosts, in the order that every helper uses. Left out, it is this command's "
        "workers, or for a single node the list registered in Redis.",
        metavar="NAME,NAME",
        reload=False,
    )
    public_url: str | None = _option(
        None,
        PLACE,
        "What terminals connect to, everything before the path, e.g. wss://im.example.com/n{index}. May hold {index}, "
        "{port} and {hostname}. Left out, it is ws://<node name>, or wss:// with TLS.",
        metavar="URL",
        reload=False,
    )
    admin_bind: str = _option(
        "127.0.0.1:0",
        PLACE,
        "Address and port of /metrics, which is served nowhere else; 'off' is none. Port 0 is any free one, and the "
        "banner says which. With several workers, worker N has this port + N.",
        metavar="HOST:PORT",
        reload=False,
    )
    redis_url: str | None = _option(
        None,
        REDIS,
        "redis://user:password@host:port/db, the same with rediss:// (TLS), unix:///path/to/socket?db=0, or "
        "redis+sentinel://user:password@host:port,host:port/service. Left out, it is the embedded Redis: a private "
        "server of this user, started where none runs.",
        metavar="URL",
        secret=True,
        reload=False,
    )
    embedded: bool = _option(
        False,
        REDIS,
        "Use the embedded Redis even where terminals or nodes of other hosts are expected; they cannot reach it.",
        reload=False,
    )
    redis_password_file: str | None = _option(
        None,
        REDIS,
        "File that holds the Redis password, read at the start and at each reload; instead of a password in the URL.",
        metavar="FILE",
        reload=True,
    )
    bus: BusMode = _option(  # noqa: RUF009 - the rule does not see that a Literal is a str
        "pubsub",
        REDIS,
        "How messages reach the nodes: pubsub as in FreeIM; or stream, which also keeps them in Redis for a node that "
        "was away. The same for all nodes.",
        reload=False,
    )
    stream_length: int = _option(
        STREAM_LENGTH,
        REDIS,
        "With --bus stream: messages that are kept for a node which is away; the oldest beyond that are lost.",
        metavar="N",
        minimum=1,
        maximum=1_000_000_000,
        reload=False,
    )
    stream_grace: float = _seconds(
        30.0,
        "With --bus stream: time after the start of a node in which clients that come back get what they missed.",
        group=REDIS,
        minimum=0,
        reload=False,
    )
    prefix: str | None = _option(
        None,
        PROTOCOL,
        "The beginning of every Redis key and channel. Left out, it is FreeIM's: im_v2 (wsim with GUIDs) and the path "
        "with _ for /.",
        metavar="TEXT",
        reload=False,
    )
    path: str = _option("/ws", PROTOCOL, "Path of the WebSocket endpoint.", metavar="PATH", reload=False)
    ids: IdKind = _option(  # noqa: RUF009 - the rule does not see that a Literal is a str
        "int", PROTOCOL, "Kind of client id: int64 as in FreeIM 2, or GUID as in FreeIM 1.", reload=False
    )
    workers: int = _option(
        1,
        RUNNING,
        "Number of nodes, each a process with a port of its own, in one supervised group.",
        metavar="N",
        minimum=1,
        maximum=1024,
        reload=False,
    )
    drain: float = _seconds(
        0.0, "Time over which a node that stops closes its connections.", group=RUNNING, minimum=0, reload=True
    )
    handover: str | None = _option(
        None,
        RUNNING,
        "Full path of a unix socket at which this node gives its listening socket to its successor: a process that is "
        "started with the same path, bind and name. May hold {index}, {port} and {hostname}. Its folder must belong to "
        "this user, and be writable by nobody else.",
        metavar="PATH",
        reload=False,
    )
    takeover: bool = _option(False, RUNNING, "Take the node's name over from a living process.", reload=False)
    replace_nodes: bool = _option(
        False,
        RUNNING,
        "Replace the list of nodes registered in Redis even while a node of that list lives.",
        reload=False,
    )
    log_level: LogLevel = _option(  # noqa: RUF009 - as for ids
        "info", RUNNING, "Least severe message that is logged to stderr.", reload=True
    )
    log_format: LogFormat = _option(  # noqa: RUF009 - as for ids
        "text", RUNNING, "Form of the log: readable lines, or one JSON object a line, for programs.", reload=True
    )
    tls_cert: str | None = _option(
        None,
        ADMISSION,
        "File with the TLS certificate and its chain (PEM). With it the node speaks TLS and nothing else.",
        metavar="FILE",
        reload=True,
    )
    tls_key: str | None = _option(
        None,
        ADMISSION,
        "File with the key of the certificate (PEM, not encrypted). Left out, the certificate's file holds it too.",
        metavar="FILE",
        reload=True,
    )
    trusted_proxies: tuple[str, ...] = _option(
        (),
        ADMISSION,
        "Addresses and networks of proxies that are believed when they say where a terminal comes from, by "
        "X-Forwarded-For or the PROXY protocol, e.g. 127.0.0.1,10.0.0.0/8.",
        metavar="ADDRESS,ADDRESS",
        reload=True,
    )
    origins: tuple[str, ...] = _option(
        (),
        ADMISSION,
        "Origins whose pages may connect (else 403), e.g. https://app.example.com or https://*.example.com. Requests "
        "without an Origin header, which no browser sends, are let in. Left out, it is every origin.",
        metavar="ORIGIN,ORIGIN",
        reload=True,
    )
    max_connections: int = _count(
        "Connections that the node holds (beyond it, 503); 0 is as many as the system's limit of descriptors allows.",
        reload=True,
    )
    max_per_client: int = _count("Connections that one client may have; 0 is any number.", reload=True)
    per_client_policy: PerClientPolicy = _option(  # noqa: RUF009 - as for ids
        "reject",
        ADMISSION,
        "What happens to one connection too many of a client: it is refused (429), or the client's oldest is closed "
        "for it (4001).",
        reload=True,
    )
    max_per_address: int = _count(
        "Sockets that one address may have open (beyond it, 429; beyond twice as many, cut without an answer); an IPv6 "
        "network of /64 is one address; 0 is any number.",
        reload=True,
    )
    handshakes_per_address: int = _count(
        "WebSocket requests that one address may make in a second (beyond it, 429); 0 is any number.", reload=True
    )
    backlog: int = _option(
        4096,
        LIMITS,
        "Connections that may wait to be accepted (the system may allow fewer).",
        metavar="N",
        minimum=1,
        maximum=2**31 - 1,
        reload=True,
    )
    ping_interval: float = _seconds(25.0, "Time between two pings of one terminal.", reload=True)
    ping_timeout: float = _seconds(
        10.0, "Time to answer a ping (else 4003); not longer than the ping interval.", reload=True
    )
    handshake_timeout: float = _seconds(5.0, "Time to send the whole HTTP request (else 408).", reload=True)
    close_timeout: float = _seconds(5.0, "Time to answer a Close frame, then the connection is cut.", reload=True)
    max_head: int = _bytes(8192, "Longest HTTP request head (else 431).", minimum=512, maximum=2**20, reload=True)
    max_inbound: int = _bytes(
        4096, "Longest message that a terminal may send (else 1009).", minimum=125, maximum=2**30, reload=True
    )
    inbound_rate: int = _bytes(
        65536,
        "What a terminal may send in a second, pings and pongs included (else 1009); 0 is any amount.",
        reload=True,
    )
    send_buffer: int = _bytes(
        65536, "SO_SNDBUF of each connection; 0 is the system's default.", maximum=2**30, reload=True
    )
    queue_limit: int = _bytes(
        1_048_576, "What may wait for one slow terminal (else 4002); one message always may.", minimum=1, reload=True
    )
    node_queue_limit: int = _bytes(
        268_435_456,
        "Memory of all that waits for slow terminals of a node; beyond it, those with most are cut (4002).",
        minimum=1,
        reload=True,
    )
    bus_queue_limit: int = _bytes(
        268_435_456,
        "Memory of what came from Redis faster than it is handled (beyond it the oldest messages are dropped); as much "
        "again of what waits for clients whose membership is being read (what comes beyond is lost for them).",
        minimum=1,
        reload=True,
    )

    resume_window: float = _seconds(
        0.0,
        "Time in which a terminal that asks for it (?resume=) may come back and get what it missed; until then it "
        "stays online. 0 is off.",
        reload=False,
        minimum=0,
    )
    resume_buffer: int = _bytes(
        524_288, "Memory of the messages that are kept for one client that may come back.", reload=False, minimum=1
    )
    node_resume_buffer: int = _bytes(
        268_435_456,
        "Memory of all that is kept for clients that may come back; beyond it, the oldest messages are forgotten.",
        reload=False,
        minimum=65_536,
    )

    def __post_init__(self) -> None:
        for option in OPTIONS.values():
            check_value(option, getattr(self, option.name))
        if self.ping_timeout > self.ping_interval:
            raise ConfigError(
                f"ping_timeout ({self.ping_timeout} s) must not be longer than ping_interval ({self.ping_interval} s)",
                "ping_timeout",
                "ping_interval",
            )
        if 0 < self.inbound_rate < self.max_inbound:
            raise ConfigError(
                f"inbound_rate ({self.inbound_rate} bytes) must not be less than max_inbound ({self.max_inbound} bytes)"
                ": no message of that length could ever come",
                "inbound_rate",
                "max_inbound",
            )
        if self.resume_window and self.resume_buffer > self.queue_limit:
            raise ConfigError(
                f"resume_buffer ({self.resume_buffer} bytes) must not be more than queue_limit ({self.queue_limit} "
                "bytes): all that is kept may wait for a terminal that has just come back",
                "resume_buffer",
                "queue_limit",
            )
        self._check_redis()
        self._check_workers()

    @property
    def kept_messages(self) -> int | None:
        """Messages that a node's stream keeps at least; None where messages go by pub/sub alone."""
        return self.stream_length if self.bus == "stream" else None

    def _check_redis(self) -> None:
        if self.redis_url is not None and self.embedded:
            raise ConfigError(
                "redis_url names a Redis and embedded asks for another; keep one", "redis_url", "embedded"
            )
        if self.redis_url is None or self.redis_password_file is None:
            return
        if parse_redis_url(self.redis_url).password is not None:
            raise ConfigError(
                "redis_url holds a password and redis_password_file is given too; keep one of them",
                "redis_url",
                "redis_password_file",
            )

    def _check_workers(self) -> None:
        port = self.address[1]
        if self.workers > 1 and port == 0:
            raise ConfigError("port 0 (any free port) works with one worker only; name a port", "bind", "workers")
        if port + self.workers - 1 > 65535:
            raise ConfigError(
                f"{self.workers} workers from port {port} on would go beyond port 65535", "bind", "workers"
            )
        self._check_admin()
        self._check_handover()
        names = [self._node_name(index) for index in range(self.workers)]
        for name in names:
            check_text("node", checks.check_node_name, name)
            # With port 0 the name may still be waiting for its port; for_worker checks again.
            if self.nodes and name not in self.nodes and port != 0:
                raise ConfigError(
                    f"the node's name {name!r} is not in the list of nodes ({', '.join(self.nodes)}); "
                    "make node one of the list, or add it to nodes (here and on every host)",
                    "node" if self.node is not None else "bind",
                    "nodes",
                )
        if len(set(names)) < self.workers:
            raise ConfigError(
                f"{self.workers} workers would share the name {names[0]!r}; put {{index}} or {{port}} into node",
                "node",
                "workers",
            )
        if self.public_url is not None:
            urls = {self._expand(self.public_url, index) for index in range(self.workers)}
            if len(urls) < self.workers:
                raise ConfigError(
                    f"{self.workers} workers would share the URL {self.public_url!r}, but a terminal must reach the "
                    "one that owns it; put {index} or {port} into public_url",
                    "public_url",
                    "workers",
                )
            for url in urls:
                check_text("public_url", checks.check_public_url, url)

    def _check_handover(self) -> None:
        if self.handover is None:
            return
        port = self.address[1]
        if port == 0:
            raise ConfigError(
                "port 0 (any free port) cannot be handed over: the next process would find another one; name a port",
                "bind",
                "handover",
            )
        paths = {self._expand(self.handover, index) for index in range(self.workers)}
        if len(paths) < self.workers:
            raise ConfigError(
                f"{self.workers} workers would share the socket {self.handover!r}; put {{index}} or {{port}} into "
                "handover",
                "handover",
                "workers",
            )
        for path in paths:
            check_text("handover", checks.check_socket_path, path)

    def _check_admin(self) -> None:
        admin, port = self.admin_address, self.address[1]
        if admin is None or admin[1] == 0:
            return
        if admin[1] + self.workers - 1 > 65535:
            raise ConfigError(
                f"the metrics of {self.workers} workers from port {admin[1]} on would go beyond port 65535",
                "admin_bind",
                "workers",
            )
        if abs(admin[1] - port) < self.workers:
            last = f" to {admin[1] + self.workers - 1}" if self.workers > 1 else ""
            raise ConfigError(
                f"the metrics would be served on port {admin[1]}{last}, which the terminals' ports overlap; choose "
                "another port for admin_bind",
                "admin_bind",
                "bind",
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port of ``bind``."""
        return checks.split_bind(self.bind)

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Host and port of ``admin_bind``; None where it is off."""
        return None if self.admin_bind == checks.OFF else checks.split_bind(self.admin_bind)

    def for_worker(self, index: int = 0, *, port: int | None = None) -> Self:
        """Return the options of one worker: placeholders filled, its own port, name and URL, ``workers`` 1.

        Args:
            index: 0 to ``workers`` - 1. With one worker the result's own options for 0 are the same again.
            port: The port that the worker listens on, where ``bind`` says 0.

        Raises:
            ConfigError: ``port`` made a name that is not in ``nodes``.
        """
        if port is not None:
            return replace(self, bind=checks.join_bind(self.address[0], port)).for_worker(index)
        nodes = self.nodes
        if self.workers > 1 and not nodes:
            nodes = tuple(self._node_name(other) for other in range(self.workers))
        return replace(
            self,
            bind=self._bind(index),
            admin_bind=self._admin_bind(index),
            # Port 0 is not known yet: a name that depends on it stays open until for_worker(port=...).
            node=self.node if self._awaits_port(self.node) else self._node_name(index),
            nodes=nodes,
            public_url=self._public_url(index),
            handover=None if self.handover is None else self._expand(self.handover, index),
            workers=1,
        )

    def for_embedded(self) -> Self:
        """Return these options with ``embedded`` set, where no Redis is named and none needs to be.

        A pod that forgot its URL must not look healthy: the embedded Redis is for one machine, so whatever shows that
        other machines take part needs ``embedded`` said explicitly.

        Raises:
            ConfigError: Terminals or nodes of other hosts are expected, or there is a password for a Redis without URL.
        """
        if self.redis_url is not None:
            return self
        if self.redis_password_file is not None:
            raise ConfigError(
                "redis_password_file is given but no redis_url; name the Redis that it is for",
                "redis_url",
                "redis_password_file",
            )
        if self.embedded:
            return self
        ways = "name the Redis with --redis-url, or say --embedded if all nodes and apps run on this machine"
        if not checks.is_loopback(self.address[0]):
            raise ConfigError(
                f"no Redis is named, and {self.bind} is for terminals of other hosts; {ways}", "bind", "redis_url"
            )
        own = {self.for_worker(index).node for index in range(self.workers)}
        others = [name for name in self.nodes if name not in own and not self._is_here(name)]
        if others:
            raise ConfigError(
                f"no Redis is named, and the list of nodes has some that may be on other hosts ({', '.join(others)}); "
                f"{ways}",
                "nodes",
                "redis_url",
            )
        return replace(self, embedded=True)

    def redis_url_with_password(self) -> str | None:
        """Return the Redis URL, with the password out of ``redis_password_file`` where that is given.

        None stands for the embedded Redis.

        Raises:
            ConfigError: The file cannot be read or holds no password.
        """
        if self.redis_url is None or self.redis_password_file is None:
            return self.redis_url
        try:
            with open(self.redis_password_file, encoding="utf-8") as file:
                password = file.read().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(
                f"redis_password_file {self.redis_password_file!r} cannot be read: {reason}", "redis_password_file"
            ) from error
        if not password:
            raise ConfigError(
                f"redis_password_file {self.redis_password_file!r} is empty; write the password into it",
                "redis_password_file",
            )
        return with_password(self.redis_url, password)

    @staticmethod
    def _is_here(name: str) -> bool:
        host = name.rpartition(":")[0].strip("[]")
        return checks.is_loopback(host) or host == socket.gethostname()

    def _awaits_port(self, template: str | None) -> bool:
        return self.address[1] == 0 and (template is None or "{port}" in template)

    def _bind(self, index: int) -> str:
        host, port = self.address
        return checks.join_bind(host, port + index)

    def _admin_bind(self, index: int) -> str:
        admin = self.admin_address
        return self.admin_bind if admin is None or admin[1] == 0 else checks.join_bind(admin[0], admin[1] + index)

    def _node_name(self, index: int) -> str:
        if self.node is not None:
            return self._expand(self.node, index)
        if checks.is_wildcard(self.address[0]):
            return self._expand("{hostname}:{port}", index)
        return self._bind(index)

    def _public_url(self, index: int) -> str | None:
        if self.public_url is None:
            # Without TLS the helper knows: FreeIM's rule is ws:// and the name.
            if self.tls_cert is None or self._awaits_port(self.node):
                return None
            return f"wss://{self._node_name(index)}"
        return self.public_url if self._awaits_port(self.public_url) else self._expand(self.public_url, index)

    def _expand(self, template: str, index: int) -> str:
        port = str(self.address[1] + index)
        return checks.expand(template, {"index": str(index), "port": port, "hostname": socket.gethostname()})


OPTIONS: Final = describe(Options)
"""Every option by name, in the order of `Options`."""
