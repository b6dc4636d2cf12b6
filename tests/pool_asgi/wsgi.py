"""The project by wsgiref, on a port. Each request has a thread of its own."""

import signal
import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from . import project  # NOQA: F401

from django.core.wsgi import get_wsgi_application  # NOQA: E402 isort:skip


class RequestHandler(WSGIRequestHandler):
    def log_message(self, format, *args):
        pass


class Server(socketserver.ThreadingMixIn, WSGIServer):
    request_queue_size = 100
    daemon_threads = False


def main(port):
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
    with make_server(
        "127.0.0.1", port, get_wsgi_application(), Server, RequestHandler
    ) as server:
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]))
