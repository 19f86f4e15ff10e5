"""The yardstick: a process that accepts connections, answers each with a 101, and sends one frame to all by send(2).

``python -m bench.yardstick`` prints its port. A line ``send N SIZE`` on stdin makes it send N frames of SIZE bytes to
every connection, one system call each; it answers with the CPU seconds that this took.
"""

from __future__ import annotations

import base64
import hashlib
import selectors
import socket
import sys
import time

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def main() -> None:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(4096)
    print(server.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(server, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    connections: list[socket.socket] = []
    while True:
        for key, _ in selector.select():
            if key.fileobj is server:
                sock, _address = server.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(sock, selectors.EVENT_READ)
            elif key.fd == sys.stdin.fileno():
                words = sys.stdin.readline().split()
                if not words:
                    return
                frames, size = int(words[1]), int(words[2])
                frame = b"x" * size
                sends = [sock.send for sock in connections]
                start = time.process_time()
                for _ in range(frames):
                    for send in sends:
                        send(frame)
                print(time.process_time() - start, flush=True)
            else:
                assert isinstance(key.fileobj, socket.socket)
                sock = key.fileobj
                head = sock.recv(4096)
                selector.unregister(sock)
                if head:
                    nonce = head.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
                    accept = base64.b64encode(hashlib.sha1(nonce + GUID).digest()).decode()
                    sock.sendall(
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
                    )
                    connections.append(sock)


if __name__ == "__main__":
    main()
