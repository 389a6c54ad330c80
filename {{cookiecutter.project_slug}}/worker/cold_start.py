"""Imported before the SDK: leaves out the probe that takes most of its import, and so of a worker's cold start.

``runpod.serverless.utils.rp_debugger`` (1.12.0) asks py-cpuinfo for the processor's name when it is imported. That
takes a second, and ``--rp_debugger`` alone would print it. Without an answer the SDK says that there is none.
"""

from contextlib import suppress

with suppress(ImportError):  # an SDK that no longer probes no longer brings it
    import cpuinfo

    cpuinfo.get_cpu_info = dict
