"""From the settings to a store of blobs."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from shared.blobs.interface import Blobs
from shared.blobs.local import LocalBlobs
from shared.errors import InvalidRequest
from shared.paths import Paths
from shared.settings import Settings


def open_blobs(settings: Settings, paths: Paths) -> Blobs:
    """Choose by `storage_url`. Nothing is connected yet. Raises InvalidRequest for an address that is not taken."""
    if not settings.storage_url:
        return LocalBlobs(paths)
    from shared.blobs.bucket import Bucket  # who has no object store need not load its library
    from shared.blobs.objects import ObjectBlobs

    bucket, _, prefix = settings.storage_url.removeprefix("s3://").partition("/")
    _check_endpoint(settings.storage_endpoint)
    return ObjectBlobs(paths, Bucket(bucket, prefix.strip("/"), endpoint=settings.storage_endpoint))


def _check_endpoint(endpoint: str) -> None:
    """Refuse to send data unencrypted to where others may listen."""
    url = urlsplit(endpoint)
    if url.scheme != "http":
        return
    if url.username or url.password:
        raise InvalidRequest("setting storage_endpoint: credentials belong into AWS_ACCESS_KEY_ID and its like")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(url.hostname, url.port or 80, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise InvalidRequest(f"setting storage_endpoint: {url.hostname!r} has no address: {error}") from error
    if not all(ipaddress.ip_address(str(address).partition("%")[0]).is_private for address in found):
        raise InvalidRequest("setting storage_endpoint: http:// is for private addresses alone; use https://")
