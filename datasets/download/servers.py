"""Asks one address for a file, or the rest of it: an http(s) server or a folder."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError, ProxyError, ReadTimeoutError, ResponseError

from bench.runs.contract import one_line
from datasets.download.partial import Version

_CHUNK = 1 << 20  # bytes
_LONGEST_PAUSE = 120.0  # seconds that a server may ask for


@dataclass(frozen=True)
class Patience:
    """How long servers are waited for."""

    connect: float = 10.0  # seconds
    stall: float = 30.0  # seconds without a byte
    retries: int = 6  # that bring nothing new
    backoff: float = 0.5  # seconds before the first of them, doubled for each


class AddressError(Exception):
    """The file cannot be had from this address."""


class TransferError(Exception):
    """May work when it is tried again."""


class VersionError(TransferError):
    """The file is no longer the version of which a part is here."""


class Answer(NamedTuple):
    """What an address sends."""

    version: Version
    begin: int  # number of the first byte
    shows_end: bool  # a connection that is cut does not look like the end of the file
    chunks: Iterator[bytes]


class _Retry(urllib3.Retry):
    """Gives up where the last attempt took long, or the server asks for a long pause."""

    def increment(self, method=None, url=None, response=None, error=None, _pool=None, _stacktrace=None) -> Any:
        if isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(error, NewConnectionError):
            raise error
        if response is not None and (self.get_retry_after(response) or 0) > _LONGEST_PAUSE:
            raise urllib3.exceptions.MaxRetryError(_pool, url, ResponseError())  # type: ignore[arg-type]
        return super().increment(method, url, response, error, _pool, _stacktrace)


def open_session(patience: Patience) -> requests.Session:
    """Connections that are tried again where they fail at once or the server is busy."""
    retry = _Retry(
        total=None,
        connect=2,
        read=2,
        other=0,
        status=patience.retries,
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=patience.backoff,
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def without_password(address: str) -> str:
    """Without the password that it may hold."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else address


@contextmanager
def ask(
    session: requests.Session, address: str, have: Version | None, offset: int, patience: Patience
) -> Iterator[Answer]:
    """The file at `address` from byte `offset` on if it is still the version `have`, else from its start.

    Raises AddressError and TransferError, also from the chunks.
    """
    scheme = urlsplit(address).scheme if "://" in address else ""
    if not (have and have.validator and have.url == without_password(address)):
        have, offset = None, 0
    if scheme in ("http", "https"):
        with _get(session, address, have, offset, patience) as response:
            raw = response.raw
            version, begin = _version(address, response, have, offset)
            shows_end = version.num_bytes is not None or bool(getattr(raw, "chunked", False))
            # read1 gives as much as is here, so that a cut loses none of it.
            chunks = _chunks(lambda size: raw.read1(size, decode_content=False), patience)
            yield Answer(version, begin, shows_end, chunks)
    elif scheme in ("", "file"):
        path = Path(url2pathname(urlsplit(address).path) if scheme else address)
        try:
            file = path.open("rb")
        except OSError as error:
            raise AddressError((error.strerror or "cannot be opened").lower()) from error
        with file:
            stat = os.fstat(file.fileno())
            version = Version(without_password(address), f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_size, None)
            begin = file.seek(offset if have == version else 0)
            yield Answer(version, begin, True, _chunks(file.read, patience))
    else:
        raise AddressError(f"{scheme}:// is no kind of address that can be read, http, https and file are")


def _get(
    session: requests.Session, url: str, have: Version | None, offset: int, patience: Patience
) -> requests.Response:
    headers = {"Accept-Encoding": "identity"}  # a part of a compressed stream could not be continued
    if have and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": have.validator or ""}
    try:
        return session.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.stall))
    except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:
        raise AddressError(_reason(error, patience)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TransferError(_reason(error, patience)) from error


def _version(url: str, response: requests.Response, have: Version | None, offset: int) -> tuple[Version, int]:
    """Of what comes, and at which byte it begins."""
    headers = response.headers
    etag = headers.get("ETag", "W/")
    validator = headers.get("Last-Modified") if etag.startswith("W/") else etag  # a weak one says nothing about bytes
    if encoding := headers.get("Content-Encoding", "").replace("identity", ""):
        raise AddressError(f"sends the file compressed ({encoding}), which could not be continued after a cut")
    if response.status_code == 206 and have and offset:
        content_range = headers.get("Content-Range", "")
        match = re.fullmatch(rf"bytes {offset}-\d+/(\d+|\*)", content_range)
        num_bytes = int(match[1]) if match and match[1] != "*" else have.num_bytes
        if not match or have.num_bytes not in (None, num_bytes):
            raise VersionError(f"sends another part of the file than asked for ({content_range})")
        if validator not in (None, have.validator):  # not every server looks at If-Range
            raise VersionError("has changed while it was being downloaded")
        return replace(have, num_bytes=num_bytes), offset
    status = f"{response.status_code} {response.reason}"
    if response.status_code == 416 and offset:
        raise VersionError(status)
    if response.status_code != 200:
        pause = headers.get("Retry-After")
        raise AddressError(f"{status}, Retry-After: {pause}" if pause else status)
    length = headers.get("Content-Length", "")
    # Hugging Face redirects to a storage server and tells the file's hash on the way.
    linked = [answer.headers.get("X-Linked-ETag", "").strip('"') for answer in (*response.history, response)]
    sha256 = next((tag for tag in linked if re.fullmatch("[0-9a-f]{64}", tag)), None)
    return Version(without_password(url), validator, int(length) if length.isdecimal() else None, sha256), 0


def _chunks(read: Any, patience: Patience) -> Iterator[bytes]:
    while True:
        try:
            chunk = read(_CHUNK)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransferError(_reason(error, patience)) from error
        if not chunk:
            return
        yield chunk


def _reason(error: BaseException, patience: Patience) -> str:
    """In a few words what was wrong at the bottom, which requests has wrapped several times."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if any(isinstance(each, ReadTimeoutError) for each in chain):
        reason = f"no data for {patience.stall:g} s"
    elif isinstance(chain[-1], TimeoutError):
        reason = f"no connection within {patience.connect:g} s"
    elif isinstance(chain[-1], urllib3.exceptions.IncompleteRead):
        reason = "connection cut"
    else:
        reason = getattr(chain[-1], "strerror", None) or one_line(chain[-1]).strip(".") or type(chain[-1]).__name__
        reason = reason[:1].lower() + reason[1:]
    return f"proxy: {reason}" if any(isinstance(each, ProxyError) for each in chain) else reason
