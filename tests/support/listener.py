"""An HTTP server on loopback that keeps what it is sent."""

import contextlib
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Listener:
    """Keeps each request: method, path, headers, the JSON of its body. `answer(handler)` may answer in another way."""

    def __init__(self, answer=None, certificate=None):
        self.requests = []
        heard = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard.append((self.command, self.path, self.headers, json.loads(body)))
                if answer:
                    return answer(self)
                self.send_response(204)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def bodies(self):
        return [body for *_, body in self.requests]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def listening(answer=None, certificate=None):
    listener = Listener(answer, certificate)
    try:
        yield listener
    finally:
        listener.close()
