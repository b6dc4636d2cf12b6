"""
Send requests to the demo site from many clients at once, and count.

Run by demo.py as a process of its own, so that measuring and being measured
do not share an interpreter. Each client has one connection and sends its next
request when the answer to the last one has come. The requests come in fixed
turns, so all servers and modes get the same ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter

GUESTS = 100
# An answer that takes longer than this after the last request is an error.
GRACE_SECONDS = 10.0
KINDS = ("guests", "visit", "guests", "slow")


class HTTPClient:
    """One keep-alive connection that knows just enough of HTTP/1.1."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str) -> int:
        """Return the status of the answer, whose body is read and ignored."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(
                self.host, self.port
            )
        assert self.reader is not None
        self.writer.write(
            (
                "%s %s HTTP/1.1\r\nHost: %s:%d\r\nContent-Length: 0\r\n\r\n"
                % (method, path, self.host, self.port)
            ).encode("ascii")
        )
        head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip().lower()
        if "content-length" in headers:
            await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            size = 1
            while size:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                await self.reader.readexactly(size + 2)
        else:
            await self.reader.read()
            headers["connection"] = "close"
        if headers.get("connection") == "close":
            self.close()
        return int(status_line.split()[1])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


class Load:
    def __init__(self, host: str, port: int, prefix: str, limit: int) -> None:
        self.host = host
        self.port = port
        self.prefix = prefix
        self.limit = limit
        self.sent = 0
        self.ok: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def client(self, number: int, until: float) -> None:
        http = HTTPClient(self.host, self.port)
        turn = number
        try:
            while time.perf_counter() < until and self.sent < self.limit:
                self.sent += 1
                kind = KINDS[turn % len(KINDS)]
                pk = turn * 7 % GUESTS + 1
                turn += 1
                if kind == "guests":
                    method, path = "GET", "%s/guests/" % self.prefix
                else:
                    method = "POST" if kind == "visit" else "GET"
                    path = "%s/guests/%d/%s/" % (self.prefix, pk, kind)
                started = time.perf_counter()
                try:
                    status = await http.request(method, path)
                except (OSError, EOFError, ValueError, IndexError) as exc:
                    self.errors["client: %s" % type(exc).__name__] += 1
                    http.close()
                    # A server that refuses connections would be asked in a
                    # tight loop.
                    await asyncio.sleep(0.05)
                    continue
                if status == 200:
                    self.seconds.append(time.perf_counter() - started)
                    self.ok[kind] += 1
                else:
                    self.errors["HTTP %d" % status] += 1
        finally:
            http.close()

    async def run(self, clients: int, seconds: float) -> dict[str, object]:
        started = time.perf_counter()
        until = started + seconds
        tasks = [
            asyncio.create_task(self.client(number, until)) for number in range(clients)
        ]
        done, pending = await asyncio.wait(tasks, timeout=seconds + GRACE_SECONDS)
        # The last answers belong to the measured time: they were waited for.
        elapsed = time.perf_counter() - started
        for task in pending:
            task.cancel()
            self.errors["no answer within %.0f s" % GRACE_SECONDS] += 1
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
        return {
            "elapsed": elapsed,
            "sent": self.sent,
            "ok": dict(self.ok),
            "errors": dict(self.errors),
            "seconds": self.seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--prefix", default="", help="/async for the async views")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--limit", type=int, default=50_000)
    args = parser.parse_args()
    load = Load(args.host, args.port, args.prefix, args.limit)
    print(json.dumps(asyncio.run(load.run(args.clients, args.seconds))))


if __name__ == "__main__":
    main()
