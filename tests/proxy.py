"""A TCP proxy that counts what passes between a client and a server."""

import contextlib
import selectors
import socket
import threading


class CountingProxy:
    """
    Forward connections to a server, counting the bytes of both directions.

    A context manager; `port` is the proxy's own on 127.0.0.1.
    """

    def __init__(self, host, port):
        self.target = host, int(port)
        self.bytes = 0
        self.connections = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopper, stopped = socket.socketpair()
        self._sockets = {self._listener, self._stopper, stopped}
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(stopped, selectors.EVENT_READ, None)
        self._stopped = stopped
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self._stopper.send(b"x")
        self._thread.join(10)
        self._selector.close()
        for sock in self._sockets:
            sock.close()

    def _run(self):
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopped:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._forward(key.fileobj, key.data)

    def _accept(self):
        client, _ = self._listener.accept()
        server = socket.create_connection(self.target)
        self.connections += 1
        for sock, peer in ((client, server), (server, client)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.add(sock)
            self._selector.register(sock, selectors.EVENT_READ, peer)

    def _forward(self, sock, peer):
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(65536)
        if data:
            self.bytes += len(data)
            with contextlib.suppress(OSError):
                peer.sendall(data)
                return
        for end in (sock, peer):
            if end in self._sockets:
                self._sockets.discard(end)
                with contextlib.suppress(KeyError):
                    self._selector.unregister(end)
                end.close()
