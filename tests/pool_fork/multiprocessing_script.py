"""
Use the pool in child processes of multiprocessing. Run in a process of its
own, with the name of a start method.

The output is one JSON object: the sessions of the parent before and
afterwards, and what each child reports.
"""

import json
import multiprocessing
import os
import sys

import scripts

# Child processes that aren't forked import this module again.
scripts.configure()

from django.db import connection  # NOQA: E402
from django.db.pool import pools  # NOQA: E402

CHILDREN = 3


def use(number):
    session = scripts.get_session(connection)
    # The parent's options arrive in all kinds of children.
    pool = pools["default"]
    connection.close()
    return {
        "pid": os.getpid(),
        "session": session,
        "again": scripts.get_session(connection),
        "max_size": pool.options.max_size,
    }


def main():
    context = multiprocessing.get_context(sys.argv[1])
    before = scripts.get_session(connection)
    with context.Pool(CHILDREN) as processes:
        children = [
            result.get(30)
            for result in [
                processes.apply_async(use, [number]) for number in range(CHILDREN)
            ]
        ]
        # Unlike at the end of the block, where they are terminated.
        processes.close()
        processes.join()
    after = scripts.get_session(connection)
    print(json.dumps({"before": before, "children": children, "after": after}))


if __name__ == "__main__":
    main()
