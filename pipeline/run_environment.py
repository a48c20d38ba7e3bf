"""How Ray behaves in our processes; imported before Ray, which reads most of it once. What the user has set stays."""

from __future__ import annotations

import os

_DEFAULTS = {
    # A video archive does not phone home.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Our own display shows the run and our own line tells why it failed: Ray's messages of tasks that
    # are tried again, tracebacks included, would end up on stdout. They are in its log files too.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # Apply `downstream_capacity_backpressure_ratio` at all times, not only when half of the object
    # store's budget is used up.
    "RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD": "0",
}

for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
