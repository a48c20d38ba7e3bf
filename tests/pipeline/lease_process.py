"""A process that takes a lease and commits under it, line by line, until SIGTERM: `… OUTPUT NAME COMMITS GO`.

It begins when the file GO exists, prints `waiting` and `held`, and appends its NAME to the file COMMITS after
each check. Exit status 2 for a refusal, 3 for a lost lease, with the message printed.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from pipeline.errors import ClusterError, UserError
from pipeline.lease import LeaseTimes, hold_lease

TIMES = LeaseTimes(heartbeat_s=0.3, expiry_s=4.0, request_s=1.0, outage_s=20.0)


def main(output: str, name: str, commits: str, go: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)
    while not Path(go).exists():
        time.sleep(0.01)
    try:
        with hold_lease(output, name, lambda _: print("waiting", flush=True), TIMES) as lease:
            print("held", flush=True)
            while True:
                lease.check()
                with Path(commits).open("a") as file:
                    file.write(f"{name}\n")
                time.sleep(0.05)
    except (UserError, ClusterError) as error:
        print(error, flush=True)
        return 2 if isinstance(error, UserError) else 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
