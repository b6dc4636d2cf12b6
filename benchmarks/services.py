"""What stands between Django and a database: PgBouncer, and a slow network."""

import asyncio
import contextlib
import socket
import threading

import servers


class PgBouncerServer(servers.LocalServer, servers.PostgreSQLClient):
    """PgBouncer in transaction mode, in front of a PostgreSQL server."""

    # SIGTERM would wait for the clients to leave, SIGINT too.
    stop_signal = servers.signal.SIGQUIT
    guard_signals = ("SIGCONT", "SIGQUIT", "SIGKILL")
    system_users = ("postgres", "nobody")

    def __init__(self, target, pool_size=10):
        super().__init__(max_connections=1000)
        self.target = target
        self.pool_size = pool_size

    def find_programs(self):
        self.program = servers.find_program("pgbouncer")
        if self.program is None:
            raise servers.ServerNotInstalled(
                "PgBouncer isn't installed. Run 'apt-get install pgbouncer'."
            )

    def initialize(self):
        self.user = self.target.user
        self.password = self.target.password
        self.users = self.write_file(
            "users.txt", '"%s" "%s"\n' % (self.user, self.password)
        )

    def command(self):
        lines = [
            "[databases]",
            "* = host=%s port=%s" % (self.target.host, self.target.port),
            "[pgbouncer]",
            "listen_addr = %s" % self.host,
            "listen_port = %s" % self.port,
            "unix_socket_dir =",
            "auth_type = scram-sha-256",
            "auth_file = %s" % self.users,
            "pool_mode = transaction",
            "default_pool_size = %d" % self.pool_size,
            "max_client_conn = %d" % self.max_connections,
            "log_connections = 0",
            "log_disconnections = 0",
        ]
        configuration = self.write_file("pgbouncer.ini", "\n".join(lines) + "\n")
        return [self.program, configuration]


class DelayingProxy:
    """
    A TCP proxy that takes a while to connect.

    A context manager; `port` is the proxy's own on 127.0.0.1, `open` counts
    the connections there are, and `opened` those there ever were.
    """

    def __init__(self, host, port, delay):
        self.target = host, int(port)
        self.delay = delay
        self.open = 0
        self.opened = 0
        self._tasks = set()
        self._listener = socket.create_server((servers.LOCALHOST, 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(10)
        self._loop.close()
        self._listener.close()

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._serve())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)

    async def _serve(self):
        server = await asyncio.start_server(self._handle, sock=self._listener)
        try:
            await server.serve_forever()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        self.open += 1
        self.opened += 1
        writers = [writer]
        try:
            await asyncio.sleep(self.delay)
            to_server = await asyncio.open_connection(*self.target)
            writers.append(to_server[1])
            pumps = [
                asyncio.create_task(self._pump(reader, to_server[1])),
                asyncio.create_task(self._pump(to_server[0], writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            for writer in writers:
                writer.close()

    @staticmethod
    async def _pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
