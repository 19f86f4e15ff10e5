"""nchan, the push module of nginx: clients listen to channels, messages come by its HTTP publisher."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

from bench.peers.base import HttpSender, Peer, Run, Sender, Server, find_program, free_port

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
    server {{
        listen 127.0.0.1:{port} backlog=4096 reuseport;
        location = /ws {{
            nchan_subscriber websocket;
            nchan_channel_id everybody $arg_token;
            nchan_subscriber_first_message newest;
        }}
        location = /publish {{
            nchan_publisher http;
            nchan_channel_id $arg_id;
        }}
    }}
}}
"""


class NchanPeer(Peer):
    """One nginx in one process, without the buffer for clients that come back: the node keeps no such either."""

    name = "nchan"

    def missing(self) -> str | None:
        """Look for nginx and the module."""
        if _nginx() and _module():
            return None
        return "apt install nginx libnginx-mod-nchan"

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
        config = run.folder / "nginx.conf"
        config.write_text(CONFIG.format(module=_module(), folder=run.folder, port=port))
        command = [str(_nginx()), "-p", str(run.folder), "-c", str(config), "-e", "stderr"]
        return _Nginx(self.name, command, port, run)

    def sender(self, server: Server) -> Sender:
        """Publish by HTTP."""
        return _NchanSender(server.port)

    def tokens(self, count: int) -> list[str]:
        """Return the names of the clients' own channels."""
        return [f"client{number}" for number in range(1, count + 1)]


class _Nginx(Server):
    """Its master only waits: what it spends is what its worker does."""

    @property
    def pid(self) -> int:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        return int(children.split()[0])


class _NchanSender(HttpSender):
    def pack(self, text: str, client: int = 0) -> bytes:
        return self.request(f"/publish?id={f'client{client}' if client else 'everybody'}", text)


def _nginx() -> str | None:
    return find_program("nginx", "/usr/sbin", "/usr/local/sbin")


def _module() -> Path | None:
    return next((path for folder in FOLDERS if (path := Path(folder) / MODULE).is_file()), None)
