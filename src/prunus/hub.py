"""Whether the hub can be reached, asked once and quickly; its client would retry for half a minute."""

import os
import socket
from functools import cache
from urllib.parse import urlparse

__all__ = ["reachable"]


@cache
def reachable() -> bool:
    """Whether the hub's host answers; taken for granted behind a proxy, and never when offline is asked for."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    place = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or (443 if place.scheme == "https" else 80)), timeout=5).close()
    except OSError:
        return False
    return True
