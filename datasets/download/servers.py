"""Asks one address for a file, or the rest of it: an http(s) server or a folder. Says in a few words why it fails."""

import email.utils
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

from bench.runs.contract import one_line
from datasets.download.partial import Version

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 20  # bytes
_HEAD = 512  # bytes, within which a page or a pointer shows itself


@dataclass(frozen=True)
class Patience:
    """How long servers are waited for, in seconds."""

    connect: float = 10.0
    stall: float = 30.0  # without a byte
    pauses: tuple[float, ...] = (0.2, 1.0, 2.0, 4.0, 8.0, 15.0)  # between attempts that bring nothing new
    pauses_unanswered: tuple[float, ...] = (0.2, 1.0)  # the same for a server that has never answered,
    slow_failure: float = 2.0  # which is not asked again where it took longer than this to fail
    longest_pause: float = 120.0  # that a server may ask for


class AddressError(Exception):
    """The file cannot be had from this address."""


class TransferError(Exception):
    """May work when it is tried again, not before `pause` seconds have passed."""

    def __init__(self, reason: str, pause: float = 0.0, has_answered: bool = True) -> None:
        super().__init__(reason)
        self.pause = pause
        self.has_answered = has_answered


class VersionError(TransferError):
    """The file is no longer the version of which a part is here."""


class Answer(NamedTuple):
    """What an address sends."""

    version: Version
    begin: int  # number of the first byte
    shows_end: bool  # a connection that is cut does not look like the end of the file
    chunks: Iterator[bytes]


def without_password(address: str) -> str:
    """Without the password that it may hold."""
    if "@" not in urlsplit(address).netloc:
        return address
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextmanager
def ask(
    session: "requests.Session", address: str, have: Version | None, offset: int, patience: Patience
) -> Iterator[Answer]:
    """The file at `address` from byte `offset` on if it is still the version `have`, else from its start.

    Raises AddressError and TransferError, also from the chunks.
    """
    scheme = urlsplit(address).scheme if "://" in address else ""
    if not (have and have.validator and have.url == without_password(address)):
        have = None
    if scheme in ("http", "https"):
        with _ask_http(session, address, have, offset if have else 0, patience) as answer:
            yield answer if answer.begin else answer._replace(chunks=_checked(answer.chunks))
    elif scheme in ("", "file"):
        path = Path(url2pathname(urlsplit(address).path) if scheme else address)
        with _open_local(path, without_password(address), have, offset) as answer:
            yield answer if answer.begin else answer._replace(chunks=_checked(answer.chunks))
    else:
        raise AddressError(f"{scheme}:// is no kind of address that can be read, http, https and file are")


@contextmanager
def _open_local(path: Path, url: str, have: Version | None, offset: int) -> Iterator[Answer]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise AddressError((error.strerror or "cannot be opened").lower()) from error
    with file:
        stat = os.fstat(file.fileno())
        version = Version(url, f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_size, sha256=None)
        begin = file.seek(offset if have == version else 0)
        yield Answer(version, begin, True, iter(lambda: _read(file), b""))


def _read(file: IO[bytes]) -> bytes:
    try:
        return file.read(_CHUNK)
    except OSError as error:
        raise AddressError(f"cannot be read ({error.strerror})") from error


@contextmanager
def _ask_http(
    session: "requests.Session", url: str, have: Version | None, offset: int, patience: Patience
) -> Iterator[Answer]:
    import requests

    headers = {"Accept-Encoding": "identity"}  # a part of a compressed stream could not be continued
    if have and have.validator and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": have.validator}
    else:
        offset = 0
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.stall))
    except requests.RequestException as error:
        raise _failure(error, patience, has_answered=False) from error
    with response:
        status = f"{response.status_code} {response.reason or ''}".strip()
        if response.status_code in (408, 425, 429) or response.status_code >= 500:
            pause = _retry_after(response.headers.get("Retry-After", ""))
            raise TransferError(status + (f", asks to come back in {pause:.0f} s" if pause else ""), pause)
        if response.status_code == 206 and offset and have:
            begin, version = offset, _continued(response, have, offset)
        elif response.status_code == 416 and offset:
            raise VersionError(status)
        elif response.status_code == 200:
            begin, version = 0, _version(url, response)
        else:
            raise AddressError(status)
        if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
            raise AddressError(f"sends the file compressed ({encoding}), which could not be continued after a cut")
        shows_end = version.num_bytes is not None or bool(getattr(response.raw, "chunked", False))
        yield Answer(version, begin, shows_end, _chunks(response, patience))


def _continued(response: "requests.Response", have: Version, offset: int) -> Version:
    """Checks that this is the rest of `have`: not every server looks at If-Range, or at all of Range."""
    content_range = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    num_bytes = int(match[2]) if match and match[2] != "*" else have.num_bytes
    if not match or int(match[1]) != offset or have.num_bytes not in (None, num_bytes):
        raise VersionError(
            f"sends another part of the file ({content_range or 'which it does not tell'}) than asked for"
        )
    if _validator(response) not in (None, have.validator):
        raise VersionError("has changed while it was being downloaded")
    return replace(have, num_bytes=num_bytes)


def _validator(response: "requests.Response") -> str | None:
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):  # a weak one says nothing about bytes
        return etag
    return response.headers.get("Last-Modified")


def _version(url: str, response: "requests.Response") -> Version:
    length = response.headers.get("Content-Length", "")
    # Hugging Face redirects to a storage server and tells the file's hash on the way.
    etags = [answer.headers.get("X-Linked-ETag", "").strip('"') for answer in (*response.history, response)]
    sha256 = next((hash for hash in etags if re.fullmatch("[0-9a-f]{64}", hash)), None)
    return Version(without_password(url), _validator(response), int(length) if length.isdecimal() else None, sha256)


def _chunks(response: "requests.Response", patience: Patience) -> Iterator[bytes]:
    import urllib3

    while True:
        try:
            chunk = response.raw.read1(_CHUNK, decode_content=False)  # as much as is here: a cut loses none of it
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _failure(error, patience, has_answered=True) from error
        if not chunk:
            return
        yield chunk


def _checked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, after a look at the first bytes: error pages and pointers come as if they were the file."""
    head = b""
    while len(head) < _HEAD and (chunk := next(chunks, b"")):
        head += chunk
    start = head.lstrip()[:_HEAD].lower()
    if not head:
        raise AddressError("is empty")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise AddressError("is a Git LFS pointer, not the file itself")
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise AddressError("is a web page, not the file (a page for logging in, or of an error)")
    return itertools.chain([head], chunks)


def _retry_after(value: str) -> float:
    """Seconds from now, 0 where the header says nothing that can be understood."""
    if value.strip().isdecimal():
        return float(value)
    date = email.utils.parsedate_tz(value)
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0


def _failure(error: Exception, patience: Patience, has_answered: bool) -> TransferError | AddressError:
    """An error of requests in a few words."""
    import requests
    from urllib3 import exceptions

    causes = list(_causes(error))
    system = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    proxy = "proxy: " if any_is(exceptions.ProxyError) else ""
    if any_is(exceptions.SSLError, requests.exceptions.SSLError):
        return AddressError(f"{proxy}no trusted encrypted connection ({one_line(error)[-120:]})")
    if proxy and (tunnel := re.search(r"Tunnel connection failed: [^'\")]+", str(error))):
        return AddressError(f"proxy: {tunnel[0].strip()}")
    if isinstance(error, requests.TooManyRedirects):
        return AddressError("redirects without end")
    if isinstance(error, requests.RequestException) and isinstance(error, ValueError):
        return AddressError(one_line(error))  # no address at all
    if any_is(exceptions.NameResolutionError, socket.gaierror):
        reason = "name not resolved"
    elif any_is(ConnectionRefusedError):
        reason = "connection refused"
    elif any(type(cause) is exceptions.ConnectTimeoutError for cause in causes):  # its kinds are other failures
        reason = f"no connection within {patience.connect:g} s"
    elif any_is(exceptions.ReadTimeoutError, TimeoutError):
        reason = f"no data for {patience.stall:g} s"
    else:
        what = "connection cut" if has_answered else "no answer"
        reason = f"{what} ({system[-1].lower()})" if system else what
    return TransferError(f"{proxy}{reason}", has_answered=has_answered)


def _causes(error: object, seen: tuple[object, ...] = ()) -> Iterator[BaseException]:
    """An error and those that have led to it."""
    if isinstance(error, BaseException) and error not in seen:
        yield error
        for cause in (*error.args, getattr(error, "reason", None), error.__cause__, error.__context__):
            yield from _causes(cause, (*seen, error))
