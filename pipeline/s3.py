"""The one door to object storage. Credentials, region and AWS_ENDPOINT_URL come from the environment, as
boto3 reads them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config


def split_url(url: str) -> tuple[str, str]:
    """ "s3://bucket/some/key" to ("bucket", "some/key").

    Raises:
        ValueError: no bucket or no key.
    """
    parts = urlsplit(url, allow_fragments=False)
    key = parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme != "s3" or not parts.netloc or not key:
        raise ValueError(f"{url!r} is not of the form s3://bucket/key")
    return parts.netloc, key


def client(
    *,
    endpoint_url: str | None = None,
    connections: int = 10,
    connect_timeout_s: float = 10,
    read_timeout_s: float = 60,
    retries: int = 3,
) -> Any:
    """A boto3 S3 client, safe to share between threads.

    Args:
        endpoint_url: a server other than Amazon's; None: as the environment says.
        connections: how many threads may use it at once.
        connect_timeout_s: seconds until a connection stands.
        read_timeout_s: seconds between two bytes.
        retries: further attempts after a failed one, with boto3's exponential back-off.
    """
    session = boto3.session.Session()
    config = Config(
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        max_pool_connections=connections,
        retries={"total_max_attempts": retries + 1, "mode": "standard"},
    )
    # S3 itself needs a region only to sign; most replacements ignore it.
    return session.client(
        "s3", endpoint_url=endpoint_url, region_name=session.region_name or "us-east-1", config=config
    )
