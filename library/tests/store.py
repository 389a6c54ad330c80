"""A real S3 server, and a client of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import ThreadedMotoServer


@contextmanager
def serve_s3(*buckets: str, key_id: str = "id", secret: str = "secret") -> Iterator[dict[str, str]]:
    """Serve S3 with ``buckets``; yield the worker's settings for the first of them."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "BUCKET_ENDPOINT_URL": f"http://{host}:{port}",
        "BUCKET_ACCESS_KEY_ID": key_id,
        "BUCKET_SECRET_ACCESS_KEY": secret,
        "BUCKET_NAME": buckets[0],
    }
    for bucket in buckets:
        s3(settings).create_bucket(Bucket=bucket)
    yield settings
    server.stop()


def s3(settings: dict[str, str]) -> Any:
    """Return a client of the store that ``settings`` are for."""
    return boto3.client(
        "s3",
        endpoint_url=settings["BUCKET_ENDPOINT_URL"],
        aws_access_key_id=settings["BUCKET_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["BUCKET_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
