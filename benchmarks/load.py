"""
Send requests from many clients at once, and count.

This runs in a worker, so that measuring and being measured don't share an
interpreter. Each client has one connection and sends its next request when the
answer to the last one has come.
"""

import asyncio
from collections import Counter
from time import perf_counter

import aiohttp

# Seconds that an answer may take. Longer than any pool's timeout.
TIMEOUT = 60


class Load:
    """
    * clients: how many there are.
    * seconds: after which no request is sent anymore, or None if each client
      sends just one.
    * is_stream: whether answers have to end with the line "end".
    """

    def __init__(self, url, clients, seconds, is_stream):
        self.url = url
        self.clients = clients
        self.seconds = seconds
        self.is_stream = is_stream
        self.times = []
        self.in_time = 0
        self.errors = Counter()

    async def send(self, session, until):
        begun_at = perf_counter()
        try:
            async with session.get(self.url) as response:
                status = response.status
                body = await response.read()
        except asyncio.TimeoutError:
            return "no answer within %d s" % TIMEOUT
        except (aiohttp.ClientError, OSError) as e:
            # A server that refuses connections would be asked in a tight loop.
            await asyncio.sleep(0.05)
            return "client: %s" % type(e).__name__
        last = body.decode(errors="replace").strip().rpartition("\n")[2]
        if last.startswith("error "):
            return last.removeprefix("error ")
        if status != 200:
            return "HTTP %d" % status
        if self.is_stream and last != "end":
            return "incomplete"
        now = perf_counter()
        self.times.append(now - begun_at)
        self.in_time += now <= until
        return None

    async def client(self, session, until):
        while True:
            error = await self.send(session, until)
            if error is not None:
                self.errors[error] += 1
            if self.seconds is None or perf_counter() >= until:
                return

    async def run(self):
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout
        ) as session:
            begun_at = perf_counter()
            until = begun_at + (TIMEOUT if self.seconds is None else self.seconds)
            async with asyncio.TaskGroup() as group:
                for _ in range(self.clients):
                    group.create_task(self.client(session, until))
            elapsed = perf_counter() - begun_at
        return {
            "answered": len(self.times),
            "in_time": self.in_time,
            "elapsed": elapsed,
            "errors": dict(self.errors),
            "times": sorted(self.times),
        }


def send(**options):
    """Return what a Load counts."""
    return asyncio.run(Load(**options).run())
