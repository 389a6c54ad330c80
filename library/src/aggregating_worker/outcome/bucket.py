"""An S3-compatible bucket, for results that do not fit the response.

The SDK's own upload (1.12.0, ``utils/rp_upload.py``) is not used: without credentials it writes to a local folder, from
which nobody can fetch the result, and says nothing.
"""

import re
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator

URL_SECONDS = 604_800
"""How long a presigned URL is valid: the longest that the signature allows, as in the SDK's own upload."""
QUERY = "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F20000101%2F{}%2Fs3%2Faws4_request"
QUERY += f"&X-Amz-Date=20000101T000000Z&X-Amz-Expires={URL_SECONDS}&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
"""What signing adds to a URL; its length is needed before there is a URL."""
STORES = re.compile(r"(s3(api)?|oss|cos|obs)[.-]|storage\.|[a-z0-9]+\.(digitaloceanspaces|linodeobjects)\.com$")
"""How the hosts of known stores begin. With other stores, the bucket's name is in the path."""
REGIONS = (
    re.compile(r"(?:^|\.)s3(?:api)?[.-]([a-z]{2,}-[a-z0-9-]*[0-9])\.", re.IGNORECASE),
    re.compile(r"([a-z]+[0-9])\.digitaloceanspaces\.com$"),
)


class Access(BaseModel, frozen=True):
    """A bucket's address and the keys to it, named as in a job's ``s3Config`` (docs, endpoints/send-requests)."""

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
    """The bucket did not take a result; the text is for the caller and holds no credential."""


@dataclass(frozen=True)
class Bucket:
    """The bucket that ``access`` describes. Any thread may use it; its client is made on first use."""

    access: Access
    _making: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def virtual(self) -> bool:
        """Whether URLs have the bucket's name in the host: if it was given there, and at Amazon, which prefers that."""
        host = urlsplit(self.access.endpoint_url).hostname or ""
        return self._is_in_the_host or host.endswith(".amazonaws.com")

    @property
    def endpoint_url(self) -> str:
        """The store's URL, without the bucket's name."""
        url = self.access.endpoint_url
        return url.replace(f"//{self.access.bucket}.", "//", 1) if self._is_in_the_host else url

    @property
    def _is_in_the_host(self) -> bool:
        """Whether the host is the bucket's name and then a store's host. Another host may begin with that name, too."""
        host = urlsplit(self.access.endpoint_url).hostname or ""
        first, _, rest = host.partition(".")
        return first == self.access.bucket and STORES.match(rest) is not None

    @property
    def region(self) -> str:
        """The region that the host names, or ``us-east-1``: most stores other than Amazon's take any."""
        host = urlsplit(self.endpoint_url).hostname or ""
        found = [match[1] for pattern in REGIONS if (match := pattern.search(host))]
        return found[0] if found else "us-east-1"

    def url_bytes(self, key: str) -> int:
        """Return how long the URL of ``key`` can be."""
        url = f"{self.endpoint_url}/{quote(self.access.bucket)}/{quote(key)}"
        return len(url) + len(QUERY.format(quote(self.access.key_id.get_secret_value(), safe=""), self.region))

    def store(self, key: str, body: bytes, content_type: str = "application/json", name: str = "") -> str:
        """Put ``body`` under ``key``; return a URL from which anyone can read it for ``URL_SECONDS``. Blocks.

        A browser that opens the URL shows the body, and saves it as ``name`` if that is given. Raises ``NotStored``
        once the client's own retries have failed.
        """
        try:
            address = {"Bucket": self.access.bucket, "Key": key}
            with self._making:
                client = self._client
            shown = {"ContentDisposition": f'inline; filename="{name}"'} if name else {}
            client.put_object(**address, Body=body, ContentType=content_type, **shown)
            url: str = client.generate_presigned_url("get_object", Params=address, ExpiresIn=URL_SECONDS)
            return url
        except Exception as error:
            what = f"{name}, {content_type}" if name else "A result"
            raise NotStored(f"{what} of {len(body)} bytes could not be stored: {_reason(error)}.") from None

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
