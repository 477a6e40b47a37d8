"""A real HTTP S3 server on this machine, and the environment in which clients find it."""

from __future__ import annotations

import itertools
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer

SECRET = "canary-secret-5d2f"
_numbers = itertools.count()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with nothing in it, reached by whoever is started meanwhile."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            yield S3Server(environment["AWS_ENDPOINT_URL"])
        finally:
            server.stop()


class S3Server:
    """Where it listens, and buckets in it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def bucket(self) -> str:
        """The URL of a store in a new, empty bucket."""
        name = f"bucket-{next(_numbers)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(request):
            return f"s3://{name}/pre/fix"
