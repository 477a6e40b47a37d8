"""The receiver of an upload when its client goes away at the worst moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from polygraft.adapters.uploads import Uploads
from polygraft.protos import adapters_pb2 as pb
from polygraft.server.grpc.upload import UploadReceiver


class SlowUploads:
    """`begin` takes as long as the test wants."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.proceed = threading.Event()
        self.num_open = 0

    def published(self, header: object) -> None:
        return None

    def begin(self, header: object) -> SlowUploads:
        self.entered.set()
        self.proceed.wait(10)
        self.num_open += 1
        return self

    def end(self, upload: SlowUploads) -> None:
        self.num_open -= 1


async def only_a_header() -> AsyncIterator[pb.UploadAdapterRequest]:
    yield pb.UploadAdapterRequest(header=pb.UploadHeader(adapter_name="a"))


async def test_a_client_that_leaves_while_the_upload_begins_leaves_nothing_open() -> None:
    uploads = SlowUploads()
    with ThreadPoolExecutor(2) as executor:
        receiver = UploadReceiver(cast(Uploads, uploads), executor, stall_timeout=10)
        call = asyncio.create_task(receiver.receive(only_a_header()))
        await asyncio.to_thread(uploads.entered.wait, 10)
        call.cancel()
        await asyncio.sleep(0.01)
        uploads.proceed.set()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert uploads.num_open == 0
