"""A local HTTP server that serves files and does, request by request, what servers do to downloads."""

import hashlib
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Fault:
    """What one answer does wrong; the byte numbers count within the answer."""

    status: int = 200  # anything else is answered without the file
    cut_after: int | None = None  # closes the connection
    stall_after: int | None = None  # sends no more until the server is closed
    corrupt_at: int | None = None  # flips this byte
    body: bytes | None = None  # sent in place of the file
    content_length: int | None = None  # claimed
    redirect_to: str | None = None
    headers: dict[str, str] = field(default_factory=dict)  # sent besides, or in place of the right ones
    ignores_range: bool = False
    ignores_if_range: bool = False
    tells_version: bool = True  # ETag
    tells_size: bool = True  # Content-Length; without it the end of the connection is the end of the file
    is_chunked: bool = False  # Transfer-Encoding


class Request(NamedTuple):
    path: str
    range: str | None
    if_range: str | None


class FaultySite(ThreadingHTTPServer):
    """`files` by path, `faults` by path, the first for the first request, …; `always` once they are used up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FaultySite":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultySite

    def do_GET(self) -> None:
        site, path = self.server, unquote(urlsplit(self.path).path)
        site.requests.append(Request(self.path, self.headers["Range"], self.headers["If-Range"]))
        fault = site.faults[path].pop(0) if site.faults[path] else site.always.get(path, Fault())
        if fault.redirect_to:
            self._head(302, {"Location": fault.redirect_to, "Content-Length": "0", **fault.headers})
            return
        if path not in site.files and fault.body is None and fault.status == 200:
            fault = Fault(status=404)
        if fault.status != 200:
            self._head(fault.status, {"Content-Length": "5", **fault.headers})
            self.wfile.write(b"sorry")
            return
        body = site.files[path] if fault.body is None else fault.body
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"ETag": etag} if fault.tells_version else {}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        is_same = fault.ignores_if_range or self.headers["If-Range"] in (None, etag)
        status, begin = 200, 0
        if asked and is_same and not fault.ignores_range:
            status, begin = 206, int(asked[1])
            if begin >= len(body):
                self._head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        sent = bytearray(body[begin:])
        if fault.corrupt_at is not None:
            sent[fault.corrupt_at] ^= 0xFF
        if fault.is_chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif fault.tells_size:
            headers["Content-Length"] = str(len(sent) if fault.content_length is None else fault.content_length)
        self._head(status, {**headers, **fault.headers})
        stop = min(x for x in (fault.cut_after, fault.stall_after, len(sent)) if x is not None)
        if fault.is_chunked:
            self._send_chunked(sent[:stop], has_end=stop == len(sent))
        else:
            self.wfile.write(sent[:stop])
        if fault.stall_after is not None:
            self.server.closing.wait()
        if stop < len(sent) or not fault.tells_size or fault.content_length is not None:
            self.close_connection = True

    def _send_chunked(self, body: bytes | bytearray, has_end: bool) -> None:
        for start in range(0, len(body), 1000):
            piece = body[start : start + 1000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if has_end:
            self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what is asserted."""
