"""Imported before the SDK (1.12.0): what its import would do slowly, or answer with a traceback."""

import io
import os
import sys
from contextlib import suppress

LOG_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")
INTEGERS = ("RUNPOD_PING_INTERVAL", "RUNPOD_REALTIME_PORT", "RUNPOD_REALTIME_CONCURRENCY")

# ``utils/rp_debugger.py`` asks py-cpuinfo for the processor's name. That takes a second, most of a worker's start, and
# ``--rp_debugger`` alone would print it. Without an answer the SDK says that there is none.
with suppress(ImportError):  # an SDK that no longer asks no longer brings it
    import cpuinfo

    cpuinfo.get_cpu_info = dict

# ``rp_logger.py`` and ``rp_ping.py`` read these as they are imported, and ``start`` the others: just as here.
level = "RUNPOD_LOG_LEVEL" if "RUNPOD_LOG_LEVEL" in os.environ else "RUNPOD_DEBUG_LEVEL"
if os.environ.get(level, "DEBUG").upper() not in LOG_LEVELS:
    sys.exit(f"Check the environment: {level} should be one of {', '.join(LOG_LEVELS)}.")
for name in INTEGERS:
    try:
        int(os.environ.get(name, "0"))
    except ValueError:
        sys.exit(f"Check the environment: {name} should be a whole number.")

# ``rp_logger.py`` prints job inputs and results as they are; a terminal that cannot must not fail the job.
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
