"""nchan, the push module of nginx: clients listen to channels, messages come by its HTTP publisher.

A client shows a token, which nginx looks up in memcached. That is nginx's own `auth_request`: nchan's
`nchan_authorize_request` does not get along with `memcached_pass` (nchan 1.3.6: the worker ends with a segmentation
fault).
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from bench.peers.base import (
    HttpSender,
    Peer,
    PeerError,
    Run,
    Sender,
    Server,
    find_program,
    free_port,
    listens,
)
from bench.processes import Process
from bench.tokens import TOKEN_SECONDS
from freeim.names import new_token

MODULE: Final = "ngx_nchan_module.so"
FOLDERS: Final = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/nginx/modules")

CONFIG: Final = """
load_module {module};
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 3600;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_message_buffer_length 0;
    upstream memcached {{
        server unix:{memcached};
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096 reuseport;
        location = /ws {{
            set $memcached_key $arg_client:$arg_token;
            auth_request /token;
            nchan_subscriber websocket;
            nchan_channel_id everybody $arg_client;
            nchan_subscriber_first_message newest;
        }}
        location = /token {{
            internal;
            memcached_pass memcached;
            memcached_buffer_size 512;  # each connection keeps it
            error_page 404 =403 @unknown;  # auth_request makes a 500 of a 404
        }}
        location @unknown {{
            return 403;
        }}
        location = /publish {{
            nchan_publisher http;
            nchan_channel_id $arg_id;
        }}
    }}
}}
"""


class NchanPeer(Peer):
    """One nginx in one process, without the buffer for clients that come back: the node keeps no such either.

    nginx cannot make a channel's name of what memcached answers, so clients say who they are, and a token is stored
    together with the client whose it is.
    """

    name = "nchan"
    path = "/ws?client="

    def missing(self) -> str | None:
        """Look for nginx, the module and memcached."""
        if _nginx() and _module() and _memcached():
            return None
        return "apt install nginx libnginx-mod-nchan memcached"

    def version(self) -> str:
        """Return nginx's; the module does not tell its own."""
        done = subprocess.run([_nginx() or "nginx", "-v"], capture_output=True, text=True, check=True)
        nginx = re.sub(r".*nginx/", "nginx ", done.stderr.strip())
        package = subprocess.run(
            ["sh", "-c", "dpkg-query -W -f '${Version}' libnginx-mod-nchan 2>/dev/null"], capture_output=True, text=True
        )
        return f"nchan {package.stdout or 'of unknown version'}, {nginx}"

    def start(self, run: Run) -> Server:
        """Write its configuration and start it."""
        port = free_port()
        run.folder.chmod(0o711)  # started by root, the worker is another user, and memcached's socket is in there
        config = run.folder / "nginx.conf"
        config.write_text(
            CONFIG.format(module=_module(), folder=run.folder, memcached=_memcached_socket(run), port=port)
        )
        command = [str(_nginx()), "-p", str(run.folder), "-c", str(config), "-e", "stderr"]
        return _Nginx(self.name, command, port, run)

    def sender(self, server: Server) -> Sender:
        """Publish by HTTP."""
        return _NchanSender(server.port)

    def tokens(self, server: Server, count: int) -> list[str]:
        """Store a token for each client, make sure that no other is let in, and return names and tokens."""
        tokens = [new_token() for _ in range(count)]
        _store(_memcached_socket(server.run), (f"client{number}:{token}" for number, token in enumerate(tokens, 1)))
        self.check_refusal(server, [f"client1&token={new_token()}", f"client0&token={tokens[0]}"])
        return [f"client{number}&token={token}" for number, token in enumerate(tokens, 1)]


class _Nginx(Server):
    """With a memcached beside it.

    Its master only waits: what it spends is what its worker does. What memcached spends is not counted, nor is what
    Redis spends for the node.
    """

    def __init__(self, name: str, command: Sequence[str], port: int, run: Run) -> None:
        path = str(_memcached_socket(run))
        # Started by root, it wants to be told that this is meant.
        self._memcached = Process([str(_memcached()), "-s", path, "-a", "0777", "-t", "1", "-u", "root"])
        if not listens(self._memcached, socket.AF_UNIX, path):
            self._memcached.__exit__(None, None, None)
            raise PeerError("memcached does not listen; stderr has its reason")
        super().__init__(name, command, port, run)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, exc, tb)
        self._memcached.__exit__(kind, exc, tb)

    @property
    def pid(self) -> int:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        return int(children.split()[0])


class _NchanSender(HttpSender):
    def pack(self, text: str, client: int = 0) -> bytes:
        return self.request(f"/publish?id={f'client{client}' if client else 'everybody'}", text)


def _store(path: Path, keys: Iterable[str]) -> None:
    """Store keys in memcached; what is wrong with one would be answered before the last request is."""
    requests = "".join(f"set {key} 0 {TOKEN_SECONDS} 1 noreply\r\n1\r\n" for key in keys)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"{requests}version\r\n".encode())
        answer = connection.makefile("rb").readline()
    if not answer.startswith(b"VERSION"):
        raise PeerError(f"memcached stores no tokens: {answer.decode().strip()}")


def _memcached_socket(run: Run) -> Path:
    return run.folder / "memcached"


def _memcached() -> str | None:
    return find_program("memcached")


def _nginx() -> str | None:
    return find_program("nginx", "/usr/sbin", "/usr/local/sbin")


def _module() -> Path | None:
    return next((path for folder in FOLDERS if (path := Path(folder) / MODULE).is_file()), None)
