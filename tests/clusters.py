"""A Ray cluster of several nodes on this machine: processes as Ray starts them, no shared memory between nodes."""

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
PROBES = {"health_check_period_ms": 1000}  # a dead node is missed after five, not fifteen seconds


@contextmanager
def cluster_of(*nodes):
    """Yields a `ray.cluster_utils.Cluster` of one core each: a head, and a node for each of some environments."""
    pytest.importorskip("ray", reason="NO RAY: pip install 'petseg[cluster]'")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("PETSEG_CACHE", cache)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # by default 15, which a busy machine leaves little
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]))
        # as the extra installs Ray: its dashboard's agents come too late where a machine is busy, and end the node
        patch.setitem(sys.modules, "ray.dashboard.optional_deps", None)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": PROBES, **NODE})
        try:
            for variables in nodes:
                cluster.add_node(num_cpus=1, env_vars=variables, **NODE)
            yield cluster
        finally:
            cluster.shutdown()
            os.environ.pop("RAY_ADDRESS", None)
