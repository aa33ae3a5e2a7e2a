"""Object stores by URL: what a ``--workdir`` at one names, and how TensorStore opens it."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from jaxmm.errors import UserError, nearest

DRIVERS = {"gs": "gcs", "s3": "s3", "file": "file"}  # of TensorStore
# How often TensorStore itself asks again, in seconds that a person would not notice: above it, ``objects`` does.
_RETRIES = {"max_retries": 3, "initial_delay": "200ms", "max_delay": "1s"}


class Place(NamedTuple):
    """A folder in an object store.

    Attributes:
      scheme: one of DRIVERS.
      bucket: "" for a folder of this machine.
      path: of the folder, without slashes around it.
    """

    scheme: str
    bucket: str
    path: str

    @classmethod
    def read(cls, flag: str, url: str) -> Place:
        """Raises UserError, naming the flag, for a URL that names no folder in a store."""
        scheme, _, rest = url.partition("://")
        if scheme not in DRIVERS:
            guess = nearest(scheme.lower(), DRIVERS)
            raise UserError(
                f"{flag}={url}: there is no store '{scheme}://'{guess}; stores are gs:// (Google Cloud Storage) and "
                f"s3:// (S3 and what speaks its protocol), and anything else may be a mounted file system's folder"
            )
        bucket, _, path = rest.partition("/")
        path = "/".join(part for part in path.split("/") if part)
        if not path or ".." in path.split("/") or (not bucket) != (scheme == "file"):
            shape = "file:///FOLDER" if scheme == "file" else f"{scheme}://BUCKET/FOLDER"
            raise UserError(f"{flag}={url} names no folder in a store: give {shape}")
        return cls(scheme, bucket, path)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"

    @property
    def spec(self) -> dict[str, Any]:
        """TensorStore's spec of the folder.

        ``AWS_ENDPOINT_URL`` is that of another server with S3's protocol; TensorStore reads
        ``TENSORSTORE_GCS_HTTP_URL`` by itself.
        """
        spec: dict[str, Any] = {"driver": DRIVERS[self.scheme], "path": f"{self.path}/"}
        if self.scheme == "file":
            return spec | {"path": f"/{self.path}/"}
        spec["bucket"] = self.bucket
        if self.scheme == "gs":
            return spec
        env = os.environ
        region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
        if endpoint := env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"):
            spec |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
        elif region:
            spec["aws_region"] = region
        if "AWS_ACCESS_KEY_ID" in env:  # else the files of a profile and the machine's own are asked, with many words
            spec["aws_credentials"] = {"type": "environment"}
        return spec

    @property
    def context(self) -> dict[str, Any]:
        """TensorStore's spec of what all that is opened there shares."""
        return {f"{DRIVERS[self.scheme]}_request_retries": _RETRIES} if self.bucket else {}


def is_url(text: str) -> bool:
    """Whether a flag's value is a URL; anything else is a path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text))
