"""Prints the Ray and Python versions of the cluster at `sys.argv[1]` as JSON: a program of its own.

Ray's client waits 40 seconds for whoever does not answer as a cluster does, and cannot be told not to:
as a process it can be killed.
"""

from __future__ import annotations

import json
import sys

from ray._common.usage.usage_lib import get_cluster_metadata
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient

address = canonicalize_bootstrap_address_or_die(sys.argv[1])
known = get_cluster_metadata(GcsClient(address=address))
print(json.dumps({"address": address, "ray": known["ray_version"], "python": known["python_version"]}))  # noqa: T201
