"""The proxy that the environment names, by which many networks reach the web."""

import os

UNUSABLE = "The proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used"
HERE = ("127.0.0.1", "localhost")


def not_for_this_machine() -> None:
    """Have this process, and those that it starts, reach this machine without a proxy, which could not."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*filter(None, [known]), *HERE])
