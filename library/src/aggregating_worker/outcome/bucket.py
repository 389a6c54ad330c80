"""An S3-compatible bucket, for results that do not fit the response.

The SDK's own upload (1.12.0, ``utils/rp_upload.py``) is not used: without credentials it writes to a local folder, from
which nobody can fetch the result, and says nothing.
"""

import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

URL_SECONDS = 604_800
"""How long a presigned URL is valid: the longest that the signature allows, as in the SDK's own upload."""
QUERY = "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F20000101%2F{}%2Fs3%2Faws4_request"
QUERY += f"&X-Amz-Date=20000101T000000Z&X-Amz-Expires={URL_SECONDS}&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
"""What signing adds to a URL; its length is needed before there is a URL."""
FOLDER_BYTES = len("/0123abcd")
"""What an object's key may have more than the one it was to have."""
STORE = "|".join(
    (
        r"(?:s3(?:api)?|oss|cos|obs|oos|sos|tos)[.-](?!synology)",
        r"storage\.(?:googleapis|yandexcloud)\.|(?:fly|t3)\.storage\.",
        r"[0-9a-f]{32}\.(?:[a-z]+\.)?r2\.|gateway\.(?:[a-z0-9]+\.)?storjshare\.|vhcompat\.",
        r"[a-z0-9-]+\.[a-z-]*(?:objects|spaces|objectstorage)\.com\b",
    )
)
"""How the hosts of known stores begin."""
IN_THE_HOST = re.compile(rf"https?://([a-z0-9][a-z0-9-]{{1,61}}[a-z0-9])\.(?:{STORE})", re.IGNORECASE)
"""A bucket's name, of 3 to 63 characters, before a store's host. With other stores, it is in the path."""
VIRTUAL = re.compile(r"\.(amazonaws\.com(\.cn)?|aliyuncs\.com|myqcloud\.com|tigris\.dev|storage\.dev)$")
"""Stores that take new buckets only, or better, by a name in the host."""
REGIONS = (
    # Amazon's words, which other stores use, too: s3.dualstack.eu-west-2.amazonaws.com, s3.us-west-004.backblazeb2.com
    r"([a-z]{2}(?:-gov|-iso[a-z]?)?-(?:north|south|east|west|central)+-?\d+)\.",
    # The service, then its region: s3.fr-par.scw.cloud, oss-cn-hangzhou-internal.aliyuncs.com, s3api-eu-ro-1.runpod.io
    r"(?:s3(?:api)?|oss|cos(?:-internal)?|obs|oos|sos|tos(?:-s3)?|objectstorage)[.-](?:(?:fips|private|direct)[.-])*"
    r"((?!accelerate|external)[a-z]{2,}-[a-z0-9-]*?[a-z0-9])(?:-internal)?\.[^.]+\.",
    # The region, then its store: nyc3.digitaloceanspaces.com, de-fra.i3storage.com
    r"([a-z]{2,3}\d|[a-z]{2}-[a-z]{2,3}-?\d*)\.[a-z0-9-]*(?:objects|spaces|storage)\.com$",
    r"(?!io\.|perf\.)([a-z0-9-]+)\.(?:(?:io\.|perf\.)?cloud\.(?:ovh|gcore)\.[a-z]+|cloud-object-storage\.appdomain\.cloud)$",
    r"([a-z0-9-]+)\.s3\.synologyc2\.net$",
)
"""Where a host names its region; of several, the one furthest right, since a bucket may be named like one."""
NAMED = {
    ".r2.cloudflarestorage.com": "auto",
    ".googleapis.com": "auto",
    ".storage.dev": "auto",
    ".tigris.dev": "auto",
    ".yandexcloud.net": "ru-central1",
    "eu-central-1.ionoscloud.com": "de",
}
"""The region that a store's documentation gives, where the host has none, or another."""


class Access(BaseModel, frozen=True):
    """A bucket's address and the keys to it, named as in a job's ``s3Config`` (docs, endpoints/send-requests).

    Without its name, the bucket is the one that the URL's host begins with, as the platform documents the URL (docs,
    development/environment-variables).
    """

    endpoint_url: str = Field(alias="endpointUrl")
    key_id: SecretStr = Field(alias="accessId", min_length=1)
    secret: SecretStr = Field(alias="accessSecret", min_length=1)
    bucket: str = Field(alias="bucketName", min_length=1)
    region: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_in_the_host(cls, given: object) -> object:
        if isinstance(given, dict) and not given.get("bucketName"):
            found = IN_THE_HOST.match(str(given.get("endpointUrl")))
            return {**given, "bucketName": found[1]} if found else given
        return given

    @field_validator("endpoint_url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("must be a URL such as https://s3.eu-west-1.amazonaws.com")
        return url.rstrip("/")

    @field_validator("region")
    @classmethod
    def _is_a_region(cls, region: str | None) -> str | None:
        if region and not re.fullmatch("[A-Za-z0-9-]{1,63}", region):  # as the client has it (botocore 1.44)
            raise ValueError("must be a region's name such as eu-west-1")
        return region


class NotStored(Exception):
    """The bucket did not take a result; the text is for the caller and holds no credential."""


@dataclass(frozen=True)
class Bucket:
    """The bucket that ``access`` describes. Any thread may use it; its client is made on first use."""

    access: Access
    _making: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def virtual(self) -> bool:
        """Whether URLs have the bucket's name in the host: if it was given there, and where the store prefers that."""
        url = self.access.endpoint_url
        return self.endpoint_url != url or VIRTUAL.search(urlsplit(url).hostname or "") is not None

    @property
    def endpoint_url(self) -> str:
        """The store's URL, without the bucket's name if a known store's host follows it."""
        url = self.access.endpoint_url
        found = IN_THE_HOST.match(url)
        return (
            url.replace(f"//{found[1]}.", "//", 1) if found and found[1].lower() == self.access.bucket.lower() else url
        )

    @property
    def region(self) -> str:
        """The region to sign for: as set, or as the host names it, or ``us-east-1``, as stores without regions want."""
        host = urlsplit(self.endpoint_url).hostname or ""
        named = (region for end, region in NAMED.items() if host.endswith(end))
        found = (match[1] for pattern in REGIONS if (match := re.match(rf"(?:.*\.)?{pattern}", host)))
        return self.access.region or next(chain(named, found), "us-east-1")

    def url_bytes(self, key: str) -> int:
        """Return how long the URL of what is stored under ``key`` can be."""
        url = f"{self.endpoint_url}/{quote(self.access.bucket)}/{quote(key)}"
        query = QUERY.format(quote(self.access.key_id.get_secret_value(), safe=""), self.region)
        return len(url) + FOLDER_BYTES + len(query)

    def store(self, key: str, body: bytes, content_type: str = "application/json", name: str = "") -> str:
        """Put ``body`` under ``key``; return a URL from which anyone can read it for ``URL_SECONDS``. Blocks.

        If there is an object under ``key``, of another run of the job, it stays: where ``JOB/0.json`` is taken, or the
        store does not say, this one goes under ``JOB/0123abcd/0.json``. A browser that opens the URL shows the body,
        and saves it as ``name`` if that is given. Raises ``NotStored`` once the client's own retries have failed.
        """
        content = {"Bucket": self.access.bucket, "Body": body, "ContentType": content_type}
        if name:
            content["ContentDisposition"] = f'inline; filename="{name}"'
        try:
            with self._making:
                client = self._client
            if not self._put_new(client, key, content):
                folder, _, last = key.rpartition("/")
                key = f"{folder}/{uuid4().hex[:8]}/{last}"
                client.put_object(Key=key, **content)
            address = {"Bucket": self.access.bucket, "Key": key}
            url: str = client.generate_presigned_url("get_object", Params=address, ExpiresIn=URL_SECONDS)
            return url
        except Exception as error:
            what = f"{name}, {content_type}" if name else "A result"
            raise NotStored(f"{what} of {len(body)} bytes could not be stored: {_reason(error)}.") from None

    def _put_new(self, client: Any, key: str, content: dict[str, Any]) -> bool:
        """Put an object under ``key`` if the store says that there is none; return whether it is there.

        It is asked before, and again with the object itself, which some stores do not heed: two may come at once.
        """
        try:
            client.head_object(Bucket=self.access.bucket, Key=key)
        except client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                with suppress(client.exceptions.ClientError):
                    client.put_object(Key=key, IfNoneMatch="*", **content)
                    return True
        except Exception:  # no answer that can be read
            return False
        return False

    @cached_property
    def _client(self) -> Any:
        import boto3  # takes a third of a second: only where it is needed
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access.key_id.get_secret_value(),
            aws_secret_access_key=self.access.secret.get_secret_value(),
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "virtual" if self.virtual else "path"},
                retries={"total_max_attempts": 3, "mode": "standard"},
                connect_timeout=5,
                read_timeout=30,
                max_pool_connections=64,
                request_checksum_calculation="when_required",  # most other stores do not know newer checksums
                response_checksum_validation="when_required",
            ),
        )


def _reason(error: Exception) -> str:
    """Return what ``error`` is, without its message: that can repeat the request, credentials included."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        code = str(answer.get("Error", {}).get("Code", ""))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        return f"the bucket answered {status} {code if re.fullmatch('[A-Za-z]{1,40}', code) else ''}".rstrip()
    return type(error).__name__
