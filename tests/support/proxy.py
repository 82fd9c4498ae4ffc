"""An HTTP proxy on loopback that misbehaves as told, while it runs: what stands between a run and its MLflow server."""

import http.client
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODES = {
    "refuse": "nobody listens any more",
    "die": "half an answer, then the connection breaks",
    "500": "",
    "502": "",
    "503": "",
    "504": "",
    "429": "with Retry-After: 20",
    "404": "an HTML page, as from a server that is no MLflow",
    "403": "a user who may not do this",
    "413": "a proxy that takes no file of this size",
    "hang": "the request is read, an answer never comes",
    "truncated": "a complete HTTP answer with half its JSON",
    "late": "the request is carried out after the client has given up",
    "lost answer": "the request is carried out, its answer never arrives",
    "slow": "carried out and answered, after a third of a second",
}
HANG_SECONDS = 30.0
LATE_SECONDS = 1.6  # the tests' client gives up after 1 s


@dataclass
class Proxy:
    """Passes requests on to a port, until a fault begins; from then on every request meets it, until `heal`.

    Attributes:
        seen: "METHOD path" of every request that arrived, with its Authorization header.
        bytes_a_second: how fast requests are read, where the link is slow.
        delay: seconds before each answer.
        faults: how many requests met a fault; a refused connection is not seen, so `refuse` counts one.
    """

    upstream: int
    port: int = 0
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    faults: int = 0
    bytes_a_second: int | None = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._mode = self._pattern = self._waiting = None
        self._skip = 0
        self._server: ThreadingHTTPServer | None = None
        self.began = threading.Event()  # the fault has met a request
        self.closing = threading.Event()
        self._listen()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, mode: str, when: str = "", after: int = 0, only: bool = False) -> None:
        """From the first request on whose "METHOD path body" matches `when`, and after `after` more such ones.

        With `only`, just the requests that match meet the fault, else all that follow the first.
        """
        assert mode in MODES, mode
        with self._lock:
            self.began.clear()
            self._waiting, self._pattern, self._skip, self._only = mode, re.compile(when), after, only
        if mode == "refuse" and not when and not after:
            self._refuse()

    def heal(self) -> None:
        with self._lock:
            self._mode = self._waiting = None
        if self._server is None:
            self._listen()

    def close(self) -> None:
        self.closing.set()
        self._close()

    def _refuse(self) -> None:
        self.faults += 1
        self._close()
        self.began.set()

    def _listen(self) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _close(self) -> None:
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()

    def fault_for(self, request: str) -> str | None:
        """Which fault this request meets."""
        with self._lock:
            if self._waiting and self._pattern.search(request):
                if self._skip:
                    self._skip -= 1
                    return None
                if self._only:
                    self.faults += 1
                    self.began.set()
                    return self._waiting
                self._mode, self._waiting = self._waiting, None
            if self._mode is None:
                return None
            if self._mode == "refuse":  # the one that makes it refuse; what follows finds nobody
                threading.Thread(target=self._refuse, daemon=True).start()
                return self._mode
            if self._mode != "slow":
                self.faults += 1
            self.began.set()
            return self._mode


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news here."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        self.close_connection = True
        body = self._read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.proxy.delay)
        text = f"{self.command} {self.path} {body[:100_000].decode('latin-1')}"
        proxy = self.proxy
        proxy.seen.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
        mode = proxy.fault_for(text)
        if mode is None:
            self._answer(*self._forward(body))
        elif mode == "slow":
            time.sleep(0.3)
            self._answer(*self._forward(body))
        elif mode == "late":
            proxy.closing.wait(LATE_SECONDS)
            self._forward(body)
        elif mode == "lost answer":
            self._forward(body)
        elif mode == "hang":
            proxy.closing.wait(HANG_SECONDS)
        elif mode == "die":
            status, headers, content = self._forward(body)
            self._answer(status, headers, content, cut=len(content) // 2)
        elif mode == "truncated":
            status, headers, content = self._forward(body)
            self._answer(status, headers, content[: len(content) // 2])
        elif mode.isdecimal():
            page = f"<html>\n<body>{mode}</body></html>".encode()
            headers = [("Content-Type", "text/html")] + ([("Retry-After", "20")] if mode == "429" else [])
            self._answer(int(mode), headers, page)

    def _read(self, size: int) -> bytes:
        speed = self.proxy.bytes_a_second
        if speed is None:
            return self.rfile.read(size)
        parts = []
        while size > 0:
            parts.append(self.rfile.read(min(size, speed // 20)))
            size -= len(parts[-1])
            time.sleep(0.05)
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = str(len(content))
        if self.command == "HEAD":  # of what a GET would give
            length = next((value for name, value in headers if name.lower() == "content-length"), length)
        self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content if cut is None else content[:cut])

    def log_message(self, *_: object) -> None:
        pass
