"""An S3-compatible bucket, for results that do not fit the response.

The SDK has an upload too (1.12.0, ``utils/rp_upload.py``), which without credentials writes to a local folder and says
nothing: a result that nobody can fetch.
"""

import re
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator

URL_SECONDS = 604_800
"""How long a presigned URL holds: the most that the signature allows, and what the SDK's own upload gives."""
QUERY = "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F20000101%2F{}%2Fs3%2Faws4_request"
QUERY += f"&X-Amz-Date=20000101T000000Z&X-Amz-Expires={URL_SECONDS}&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
STORES = re.compile(r"(s3(api)?|oss|cos|obs)[.-]|storage\.|[a-z0-9]+\.(digitaloceanspaces|linodeobjects)\.com$")
"""The hosts of stores, as far as they are named like that; elsewhere the bucket is in the path."""
REGIONS = (
    re.compile(r"(?:^|\.)s3(?:api)?[.-]([a-z]{2,}-[a-z0-9-]*[0-9])\.", re.IGNORECASE),
    re.compile(r"([a-z]+[0-9])\.digitaloceanspaces\.com$"),
)


class Access(BaseModel, frozen=True):
    """Where a bucket is and who may write to it, as a job's ``s3Config`` spells it (docs, endpoints/send-requests)."""

    endpoint_url: str = Field(alias="endpointUrl")
    key_id: SecretStr = Field(alias="accessId", min_length=1)
    secret: SecretStr = Field(alias="accessSecret", min_length=1)
    bucket: str = Field(alias="bucketName", min_length=1)

    @field_validator("endpoint_url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("must be a URL such as https://s3.eu-west-1.amazonaws.com")
        return url.rstrip("/")


class NotStored(Exception):
    """A result that the bucket did not take; the text is for the caller, and holds no credential."""


@dataclass(frozen=True)
class Bucket:
    """The bucket of ``access``. Any thread may use it; its client is made when it is first needed."""

    access: Access
    _making: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def virtual(self) -> bool:
        """Whether the bucket's name stands in the host: where it was given so, and at Amazon, which prefers it."""
        host = urlsplit(self.access.endpoint_url).hostname or ""
        return self._is_in_the_host or host.endswith(".amazonaws.com")

    @property
    def endpoint_url(self) -> str:
        """Where the store is, without the bucket's name."""
        url = self.access.endpoint_url
        return url.replace(f"//{self.access.bucket}.", "//", 1) if self._is_in_the_host else url

    @property
    def _is_in_the_host(self) -> bool:
        """Whether what follows the bucket's name in the host is a store's: a host may be named like a bucket."""
        host = urlsplit(self.access.endpoint_url).hostname or ""
        first, _, rest = host.partition(".")
        return first == self.access.bucket and STORES.match(rest) is not None

    @property
    def region(self) -> str:
        """The region in the endpoint's host; most stores but Amazon's take any."""
        host = urlsplit(self.endpoint_url).hostname or ""
        found = [match[1] for pattern in REGIONS if (match := pattern.search(host))]
        return found[0] if found else "us-east-1"

    def url_bytes(self, key: str) -> int:
        """Return how long the URL of ``key`` is, at most."""
        place = f"{self.endpoint_url}/{quote(self.access.bucket)}/{quote(key)}"
        return len(place) + len(QUERY.format(quote(self.access.key_id.get_secret_value(), safe=""), self.region))

    def store(self, key: str, body: bytes, content_type: str = "application/json", name: str = "") -> str:
        """Put ``body`` under ``key``; return a URL from which anyone can read it for ``URL_SECONDS``.

        A browser shows it, and saves it as ``name`` if it has one.

        Raises ``NotStored`` once the client's own retries are used up. Blocks.
        """
        try:
            place = {"Bucket": self.access.bucket, "Key": key}
            with self._making:
                client = self._client
            shown = {"ContentDisposition": f'inline; filename="{name}"'} if name else {}
            client.put_object(**place, Body=body, ContentType=content_type, **shown)
            url: str = client.generate_presigned_url("get_object", Params=place, ExpiresIn=URL_SECONDS)
            return url
        except Exception as error:
            what = f"{name}, {content_type}" if name else "A result"
            raise NotStored(f"{what} of {len(body)} bytes could not be stored: {_reason(error)}.") from None

    @cached_property
    def _client(self) -> Any:
        import boto3  # takes a third of a second, which only a worker that needs it pays
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
                request_checksum_calculation="when_required",  # newer checksums are unknown to most other stores
                response_checksum_validation="when_required",
            ),
        )


def _reason(error: Exception) -> str:
    """Return the kind of ``error`` only: its message can hold what was sent, and so who sent it."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        code = str(answer.get("Error", {}).get("Code", ""))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        return f"the bucket answered {status} {code if re.fullmatch('[A-Za-z]{1,40}', code) else ''}".rstrip()
    return type(error).__name__
