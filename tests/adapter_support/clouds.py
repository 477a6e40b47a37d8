"""What Google Cloud Storage and Azure Blob Storage say over HTTP to the few requests we make.

Made after their reference pages (the XML API of Cloud Storage; Put Blob, Put Block, Put Block
List, List Blobs, Get Blob, Blob Batch), so that a client built for them can be run without them.
A create that does not ask for "only if it does not exist", in the words of its cloud, overwrites.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

PAGE = 1000  # keys of one listing
ISO = "2026-01-01T00:00:00.000Z"


class Cloud:
    """Objects of one cloud by "container/key", and the parts of those that are being sent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, str], bytes] = {}
        self.numbers = itertools.count(1)

    def put(self, path: str, data: bytes, *, only_new: bool) -> bool:
        with self.lock:
            if only_new and path in self.objects:
                return False
            self.objects[path] = data
            return True

    def keys(self, container: str, prefix: str, after: str) -> list[tuple[str, int]]:
        """A page of keys behind `after`, with their sizes."""
        with self.lock:
            start = f"{container}/{prefix}"
            found = [path for path in self.objects if path.startswith(start)]
            names = sorted(path.removeprefix(f"{container}/") for path in found)
            page = [name for name in names if name > after][:PAGE]
            return [(name, len(self.objects[f"{container}/{name}"])) for name in page]


class _Handler(BaseHTTPRequestHandler):
    """What both clouds have in common."""

    protocol_version = "HTTP/1.1"
    cloud: Cloud  # of the subclass that `cloud_server` makes

    def log_message(self, *_: object) -> None:
        pass

    def place(self) -> tuple[str, dict[str, str]]:
        """ "container/key" or "container", and the query."""
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).strip("/"), query

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_object(self) -> None:
        path, _ = self.place()
        data = self.cloud.objects.get(path)
        if data is None:
            return self.answer(404)
        facts = {"ETag": '"1"', "Last_Modified": formatdate(0, usegmt=True)}
        if self.command == "HEAD":  # says how long it is without sending it
            self.send_response(200)
            for name, value in (*facts.items(), ("Content_Length", str(len(data)))):
                self.send_header(name.replace("_", "-"), value)
            return self.end_headers()
        asked = self.headers.get("Range") or self.headers.get("x-ms-range")
        if asked is None:
            return self.answer(200, data, **facts)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        end = int(first) + len(part) - 1
        return self.answer(206, part, Content_Range=f"bytes {first}-{end}/{len(data)}", **facts)

    def do_HEAD(self) -> None:
        self.read_object()


class GoogleHandler(_Handler):
    """The XML API of Cloud Storage."""

    def do_GET(self) -> None:
        path, query = self.place()
        if "list-type" not in query:
            return self.read_object()
        after = query.get("continuation-token") or query.get("start-after", "")
        page = self.cloud.keys(path, query.get("prefix", ""), after)
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><ETag>1</ETag>"
            f"<LastModified>{ISO}</LastModified></Contents>"
            for name, size in page
        )
        last = escape(page[-1][0]) if len(page) == PAGE else ""
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last else ""
        self.answer(200, f"<ListBucketResult>{contents}{more}</ListBucketResult>".encode())

    def do_PUT(self) -> None:
        path, query = self.place()
        data = self.body()
        if "uploadId" in query:
            self.cloud.parts[query["uploadId"], query["partNumber"].zfill(6)] = data
            return self.answer(200, ETag='"1"')
        only_new = self.headers.get("x-goog-if-generation-match") == "0"
        if not self.cloud.put(path, data, only_new=only_new):
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        return self.answer(200, ETag='"1"', x_goog_generation="1")

    def do_POST(self) -> None:
        path, query = self.place()
        self.body()
        if "uploads" in query:
            id_ = f"<UploadId>{next(self.cloud.numbers)}</UploadId>"
            body = f"<InitiateMultipartUploadResult>{id_}</InitiateMultipartUploadResult>"
            return self.answer(200, body.encode())
        parts = self.cloud.parts
        mine = sorted(key for key in parts if key[0] == query["uploadId"])
        self.cloud.put(path, b"".join(parts[key] for key in mine), only_new=False)
        body = "<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>"
        return self.answer(200, body.encode())

    def do_DELETE(self) -> None:
        path, _ = self.place()
        self.answer(204 if self.cloud.objects.pop(path, None) is not None else 404)


class AzureHandler(_Handler):
    """Blob Storage."""

    def do_GET(self) -> None:
        path, query = self.place()
        if query.get("comp") != "list":
            return self.read_object()
        after = query.get("marker") or query.get("startFrom", "")
        page = self.cloud.keys(path, query.get("prefix", ""), after)
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties>"
            f"<Last-Modified>{formatdate(0, usegmt=True)}</Last-Modified>"
            f"<Content-Length>{size}</Content-Length><Content-Type>x/x</Content-Type>"
            "<Etag>1</Etag></Properties></Blob>"
            for name, size in page
        )
        marker = escape(page[-1][0]) if len(page) == PAGE else ""
        end = f"<NextMarker>{marker}</NextMarker>"
        self.answer(
            200, f"<EnumerationResults><Blobs>{blobs}</Blobs>{end}</EnumerationResults>".encode()
        )

    def do_PUT(self) -> None:
        path, query = self.place()
        data, facts = self.body(), {"ETag": '"1"', "Last_Modified": formatdate(0, usegmt=True)}
        if query.get("comp") == "block":
            self.cloud.parts[path, query["blockid"]] = data
            return self.answer(201, b"", **facts)
        if query.get("comp") == "blocklist":
            ids = data.decode().replace("<", ">").split(">")
            named = [id_ for id_ in ids if (path, id_) in self.cloud.parts]
            data = b"".join(self.cloud.parts[path, id_] for id_ in named)
        only_new = self.headers.get("If-None-Match") == "*"
        if not self.cloud.put(path, data, only_new=only_new):
            return self.answer(409, b"<Error><Code>BlobAlreadyExists</Code></Error>")
        return self.answer(201, b"", **facts)

    def do_POST(self) -> None:
        """A batch of deletions, which is how the client sends a single one, too."""
        answers = []
        for part in self.body().decode().split("Content-ID: ")[1:]:
            number, target = part.split()[0], part.split("DELETE ")[1].split()[0]
            path = unquote(urlsplit(target).path).strip("/")
            gone = self.cloud.objects.pop(path, None) is not None
            status = "202 Accepted" if gone else "404 The specified blob does not exist."
            code = "" if gone else "x-ms-error-code: BlobNotFound\r\n"
            answers.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status}\r\n{code}\r\n"
            )
        body = f"{''.join(answers)}--b--\r\n".encode()
        self.answer(202, body, Content_Type="multipart/mixed; boundary=b")


@contextmanager
def cloud_server(scheme: str) -> Iterator[str]:
    """The URL of an empty store of this scheme ("gs", "az"), for whoever is started meanwhile."""
    base = {"gs": GoogleHandler, "az": AzureHandler}[scheme]
    handler = type("Handler", (base,), {"cloud": Cloud()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "gs": {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": "canary-secret-5d2f"},
        "az": {
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_STORAGE_ACCOUNT_KEY": "Y2FuYXJ5LXNlY3JldC01ZDJm",
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment[scheme].items():
            patch.setenv(name, value)
        try:
            yield f"{scheme}://container/pre/fix"
        finally:
            server.shutdown()
            server.server_close()
