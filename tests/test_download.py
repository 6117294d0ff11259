"""Downloads from a server that does wrong what servers do wrong: the right file, or a line that says why not."""

import errno
import fcntl
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import filelock
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasets import DataError
from datasets.cache import exclusive
from datasets.download import checksums
from datasets.download.checksums import LOCK, verify
from datasets.download.fetch import MIRROR, fetch
from datasets.download.partial import note_path, partial_path
from datasets.download.servers import Patience
from datasets.spec import RemoteFile
from tests.faulty_server import Fault, FaultySite

ROOT = Path(__file__).resolve().parent.parent
SET = "toy-v0"
NAME = "data.bin"
DATA = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)  # of the same length
HASTE = Patience(connect=5.0, stall=10.0, retries=3, backoff=0.001)
LOGIN_PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 300000\n"


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv(LOCK, str(tmp_path / "lock.json"))
    monkeypatch.delenv(MIRROR, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def site() -> Iterator[FaultySite]:
    with FaultySite() as site:
        site.files[f"/{NAME}"] = DATA
        yield site


@pytest.fixture
def mirror() -> Iterator[FaultySite]:
    with FaultySite() as site:
        site.files[f"/{NAME}"] = DATA
        yield site


def remote(*sites: FaultySite, name: str = NAME, num_bytes: int | None = None) -> RemoteFile:
    return RemoteFile(name, tuple(f"{site.url}/{name}" for site in sites), num_bytes)


def get(folder: Path, *files: RemoteFile, patience: Patience = HASTE, **options) -> list[Path]:
    return fetch(SET, files, folder, patience=patience, **options)


def refusal(folder: Path, *files: RemoteFile, patience: Patience = HASTE) -> str:
    """The error's line; no file has come under its final name."""
    with pytest.raises(DataError) as caught:
        get(folder, *files, patience=patience)
    for file in files:
        assert not (folder / file.name).exists()
    line = str(caught.value)
    assert "\n" not in line and SET in line, line
    return line


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def patience_for(*faults: Fault) -> Patience:
    """Short where a stall is to come, long elsewhere: the machine may be slow."""
    return replace(HASTE, stall=0.3) if any(fault.stall_after is not None for fault in faults) else HASTE


def recorded() -> dict[str, checksums.Entry]:
    return checksums.entries(checksums.lock_file())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, observations=np.random.default_rng(0).normal(size=(5000, 5)))
    return file.getvalue()


def begun(folder: Path, site: FaultySite, data: bytes, etag_of: bytes = DATA) -> Path:
    """A partial file as a killed download leaves it."""
    folder.mkdir(exist_ok=True)
    part = partial_path(folder / NAME)
    part.write_bytes(data)
    version = {
        "url": f"{site.url}/{NAME}",
        "validator": f'"{hashlib.md5(etag_of).hexdigest()}"',
        "num_bytes": len(etag_of),
        "sha256": None,
    }
    note_path(part).write_text(json.dumps(version))
    return part


def test_a_file_comes_whole_and_is_recorded(site: FaultySite, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be: downloads need no cache")
    assert get(folder, remote(site)) == [folder / NAME]
    assert (folder / NAME).read_bytes() == DATA and names(folder) == {NAME}
    entry = recorded()[f"{SET}/{NAME}"]
    assert (entry["bytes"], entry["sha256"], entry["url"]) == (len(DATA), sha256(DATA), f"{site.url}/{NAME}")
    get(folder, remote(site))
    assert len(site.requests) == 1  # the second time it is there


def test_shards_come_side_by_side(site: FaultySite, folder: Path) -> None:
    shards = {f"/below/{SET}-{index:03}.bin": np.random.default_rng(index).bytes(50_000) for index in range(12)}
    site.files |= shards
    site.faults[f"/below/{SET}-003.bin"] = [Fault(cut_after=20_000)]
    site.faults[f"/below/{SET}-005.bin"] = [Fault(is_chunked=True)]
    site.faults[f"/below/{SET}-007.bin"] = [Fault(status=503)]
    seen: list[tuple[int, int | None]] = []
    files = [remote(site, name=name[1:]) for name in shards]
    paths = get(folder, *files, workers=3, progress=lambda done, total: seen.append((done, total)))
    assert [path.read_bytes() for path in paths] == list(shards.values())
    assert len(recorded()) == 12 and f"{SET}/below/{SET}-000.bin" in recorded()
    assert seen[-1] == (12 * 50_000, 12 * 50_000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


PASSING = {
    "cut again and again": [Fault(cut_after=20_000)] * 12,
    "stalled": [Fault(stall_after=100_000)],
    "busy": [Fault(status=503), Fault(status=429, headers={"Retry-After": "0"}), Fault(status=502)],
    "cut, then no range": [Fault(cut_after=100_000), Fault(ignores_range=True)],
    "cut, then another range": [Fault(cut_after=100_000), Fault(headers={"Content-Range": "bytes 5-299999/300000"})],
    "cut, then out of range": [Fault(cut_after=100_000), Fault(status=416)],
    "cut, weak version": [Fault(cut_after=100_000, headers={"ETag": 'W/"1"'}, tells_version=False)],
    "cut of a chunked answer": [Fault(cut_after=100_000, is_chunked=True)],
    "claims more than it sends": [Fault(content_length=400_000)],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_what_passes_is_overcome(faults: list[Fault], site: FaultySite, folder: Path) -> None:
    site.faults[f"/{NAME}"] = list(faults)
    get(folder, remote(site), patience=patience_for(*faults))
    assert (folder / NAME).read_bytes() == DATA and names(folder) == {NAME}
    assert recorded()[f"{SET}/{NAME}"]["sha256"] == sha256(DATA)
    assert not site.faults[f"/{NAME}"]


LASTING = {
    "not there": (Fault(status=404), "404 Not Found", 1),
    "broken": (Fault(status=500), "500 Internal Server Error", 4),
    "busy for long": (Fault(status=503, headers={"Retry-After": "3600"}), "503 Service Unavailable, Retry-After", 1),
    "a login page": (Fault(body=LOGIN_PAGE), "is a web page", 1),
    "a pointer": (Fault(body=LFS_POINTER), "is a Git LFS pointer", 1),
    "empty": (Fault(body=b""), "is empty", 1),
    "another format": (Fault(body=b"{'error': 'quota'}"), "not a whole npz", 1),
    "claims less than it has": (Fault(content_length=20_000), "not a whole npz", 1),
    "corrupted": (Fault(corrupt_at=1000), "damaged npz", 1),
    "cut at the same byte": (Fault(cut_after=100_000, ignores_range=True), "connection cut", 4),
    "stalled": (Fault(stall_after=0), "no data for 0.3 s", 4),
    "size not told": (Fault(tells_size=False, cut_after=9), "does not tell the size", 1),
    "compressed": (Fault(headers={"Content-Encoding": "gzip"}), "compressed (gzip)", 1),
    "redirected in a circle": (Fault(redirect_to="/data.npz"), "exceeded 30 redirects", 31),
}


@pytest.mark.parametrize(("fault", "reason", "num_requests"), LASTING.values(), ids=LASTING)
def test_what_lasts_is_said_and_a_mirror_has_it(
    fault: Fault, reason: str, num_requests: int, site: FaultySite, mirror: FaultySite, folder: Path
) -> None:
    for each in (site, mirror):
        each.files["/data.npz"] = npz()
    site.always["/data.npz"] = fault
    line = refusal(folder, remote(site, name="data.npz"), patience=patience_for(fault))
    assert f"{site.url}/data.npz: " in line and reason in line, line
    assert len(site.requests) == num_requests
    assert not recorded()
    get(folder, remote(site, mirror, name="data.npz"), patience=patience_for(fault))
    assert (folder / "data.npz").read_bytes() == npz() and names(folder) == {"data.npz"}
    assert recorded()[f"{SET}/data.npz"]["url"] == f"{mirror.url}/data.npz"
    assert [request.range for request in mirror.requests] == [None]


def test_a_cut_hdf5_file_is_refused_before_it_is_recorded(site: FaultySite, folder: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "whole.hdf5", "w") as file:
        file["obs"] = np.zeros((1000, 5))
    site.files["/data.hdf5"] = (tmp_path / "whole.hdf5").read_bytes()
    site.faults["/data.hdf5"] = [Fault(content_length=20_000)]
    assert "not a whole HDF5" in refusal(folder, remote(site, name="data.hdf5"))
    assert not recorded() and not names(folder)
    assert get(folder, remote(site, name="data.hdf5"))[0].read_bytes() == site.files["/data.hdf5"]


def test_each_address_is_listed_with_its_reason(site: FaultySite, mirror: FaultySite, folder: Path) -> None:
    site.always[f"/{NAME}"] = Fault(status=404)
    mirror.always[f"/{NAME}"] = Fault(cut_after=1000, ignores_range=True)
    line = refusal(folder, remote(site, mirror))
    assert f"{site.url}/{NAME}: 404 Not Found; {mirror.url}/{NAME}: connection cut" in line
    assert "what has arrived is kept" in line and len(partial_path(folder / NAME).read_bytes()) == 1000


def test_no_network_is_said_once_for_all_files(folder: Path) -> None:
    files = [
        RemoteFile(f"{index}.npz", (f"http://server.invalid/{index}.npz", f"http://127.0.0.1:9/{index}.npz"))
        for index in range(100)
    ]
    line = refusal(folder, *files, patience=Patience())
    assert "http://server.invalid/0.npz: " in line and "; http://127.0.0.1:9/0.npz: connection refused" in line
    assert "and 99 more files" in line and len(line) < 300


def test_of_many_files_one_is_named_for_each_kind_of_failure(site: FaultySite, folder: Path) -> None:
    files = [remote(site, name=f"{index}.bin") for index in range(9)]
    site.files["/8.bin"] = DATA
    site.always["/4.bin"] = Fault(status=403)
    with pytest.raises(DataError) as caught:
        get(folder, *files, workers=1)
    named = f"0.bin ({site.url}/0.bin: 404 Not Found), 4.bin ({site.url}/4.bin: 403 Forbidden) and 6 more files"
    assert named in str(caught.value)
    assert names(folder) == {"8.bin"}, "the others come"
    line = refusal(folder, *files[3:6])
    assert all(f"{site.url}/{index}.bin: 40" in line for index in (3, 4, 5)), "all of a few"


def test_a_server_that_never_answers_is_asked_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        files = [RemoteFile(f"{index}.bin", (f"{url}{index}.bin",)) for index in range(20)]
        line = refusal(folder, *files, patience=replace(HASTE, stall=0.3))
        assert f"{url}0.bin: no data for 0.3 s" in line
        silent.setblocking(False)
        connections = 0
        with suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                connections += 1
        assert connections < len(files)


def test_a_size_other_than_the_known_one_is_refused(site: FaultySite, folder: Path) -> None:
    assert "has 300,000 bytes, expected 299,999" in refusal(folder, remote(site, num_bytes=299_999))
    site.always[f"/{NAME}"] = Fault(is_chunked=True)  # tells it only at the end
    assert "has 300,000 bytes, expected 299,999" in refusal(folder, remote(site, num_bytes=299_999))
    site.always[f"/{NAME}"] = Fault(tells_size=False)
    get(folder, remote(site, num_bytes=300_000))


def test_a_hash_that_the_server_tells_is_checked(site: FaultySite, folder: Path) -> None:
    site.files["/storage"] = DATA
    redirect = Fault(redirect_to="/storage", headers={"X-Linked-ETag": f'"{sha256(DATA)}"'})
    site.always[f"/{NAME}"] = redirect
    site.faults["/storage"] = [Fault(corrupt_at=200_000)]
    assert "damaged on the way" in refusal(folder, remote(site))
    site.faults["/storage"] = [Fault(cut_after=100_000)]
    get(folder, remote(site))
    assert (folder / NAME).read_bytes() == DATA
    assert [request.range for request in site.requests if request.path == "/storage"][-1] == "bytes=100000-"


# What is recorded


def test_a_server_that_stalls_for_every_file_is_not_asked_for_all(site: FaultySite, folder: Path) -> None:
    site.always = {f"/{index}.bin": Fault(stall_after=0, body=DATA) for index in range(20)}
    line = refusal(folder, *(remote(site, name=name[1:]) for name in site.always), patience=replace(HASTE, stall=0.3))
    assert f"{site.url}/0.bin: no data for 0.3 s" in line
    assert len(site.requests) <= 4 * 4  # of four workers


@pytest.mark.parametrize("data", [OTHER, OTHER[:-1]], ids=["same size", "other size"])
def test_a_file_other_than_recorded_is_refused(data: bytes, site: FaultySite, mirror: FaultySite, folder: Path) -> None:
    get(folder, remote(site))
    (folder / NAME).unlink()
    site.files[f"/{NAME}"] = data
    line = refusal(folder, remote(site))
    assert f"delete '{SET}/{NAME}' from the lock file" in line and str(checksums.lock_file()) in line
    if len(data) == len(DATA):
        assert f"has sha256 {sha256(OTHER)}, expected {sha256(DATA)}" in line
    else:
        assert "has 299,999 bytes, expected 300,000" in line
    assert not names(folder) and recorded()[f"{SET}/{NAME}"]["sha256"] == sha256(DATA)
    get(folder, remote(site, mirror))  # which has the recorded one
    assert (folder / NAME).read_bytes() == DATA
    (folder / NAME).unlink()
    checksums.lock_file().unlink()  # as the line says
    get(folder, remote(site))
    assert (folder / NAME).read_bytes() == data and names(folder) == {NAME}


def test_verify_tells_what_differs(site: FaultySite, folder: Path) -> None:
    path = get(folder, remote(site))[0]
    own = folder / "own.bin"
    own.write_bytes(OTHER)

    def check(*paths: Path, record: bool = False) -> list[tuple[str, bool]]:
        return verify(SET, [path.name for path in paths], list(paths), record)

    (same, same_differs), (new, new_differs) = check(path, own)
    assert "as recorded" in same and "not recorded" in new and not same_differs and not new_differs
    assert "recorded now" in check(own, record=True)[0][0] and "as recorded" in check(own)[0][0]
    path.write_bytes(OTHER)
    [(line, differs)] = check(path, record=True)
    assert differs and sha256(DATA) in line and sha256(OTHER) in line and site.url in line and "data get toy-v0" in line
    path.write_bytes(OTHER[:-1])
    [(line, differs)] = check(path)
    assert differs and "299,999 bytes" in line and "300,000 bytes" in line
    assert recorded()[f"{SET}/{NAME}"]["sha256"] == sha256(DATA)


def test_records_of_several_at_once_are_all_kept(tmp_path: Path) -> None:
    lock = checksums.lock_file()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: checksums.record(lock, SET, f"{index}.npz", 1, "0" * 64, None), range(60)))
    assert set(recorded()) == {f"{SET}/{index}.npz" for index in range(60)}
    found = json.loads(lock.read_text())
    assert list(found) == sorted(found)
    first = checksums.record(lock, SET, "0.npz", 2, "1" * 64, None)
    assert first["sha256"] == "0" * 64  # the first one stays


def test_a_damaged_lock_file_is_named_before_anything_is_fetched(site: FaultySite, folder: Path) -> None:
    for text in ('{"a": 1', "[]", '{"toy-v0/data.bin": {"bytes": "many", "sha256": ""}}', "<<<<<<< HEAD"):
        checksums.lock_file().write_text(text)
        with pytest.raises(DataError, match="mend it"):
            get(folder, remote(site))
    assert not site.requests


def test_a_lock_file_that_cannot_be_written_is_named_where_it_has_to_be(
    site: FaultySite, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    get(folder, remote(site))
    (tmp_path / ".lock.json.lock").unlink()
    (tmp_path / ".lock.json.lock").mkdir()  # nothing can be recorded now, and what is recorded is enough
    (folder / NAME).unlink()
    assert get(folder, remote(site))[0].read_bytes() == DATA
    (folder / NAME).unlink()
    monkeypatch.setenv(LOCK, "/proc/lock.json")  # nobody can write there, root neither
    with pytest.raises(DataError, match=f"cannot record checksums in /proc/lock.json.*{LOCK}=FILE"):
        get(folder, remote(site))


# Continuing


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 20_000), max_size=6), size=st.integers(1, 60_000))
def test_cuts_anywhere_give_the_same_bytes(
    cuts: list[int], size: int, site: FaultySite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    name = f"{folder.name}.bin"
    site.files[f"/{name}"] = DATA[:size]
    site.faults[f"/{name}"] = [Fault(cut_after=cut) for cut in cuts]
    get(folder, remote(site, name=name), patience=replace(HASTE, retries=8, backoff=0.0))
    assert (folder / name).read_bytes() == DATA[:size] and names(folder) == {name}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(here=100_000, has_changed=True, note="right", fault=Fault(ignores_if_range=True))
@example(here=100_000, has_changed=True, note="right", fault=Fault())
@example(here=len(DATA) + 5, has_changed=True, note="right", fault=Fault())
@given(
    here=st.integers(0, len(DATA) + 5),
    has_changed=st.booleans(),
    note=st.sampled_from(["right", "none", "torn", "of another server"]),
    fault=st.sampled_from([Fault(), Fault(ignores_range=True), Fault(ignores_if_range=True)]),
)
def test_a_part_is_continued_only_by_its_own_version(
    here: int, has_changed: bool, note: str, fault: Fault, site: FaultySite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("versions")
    whole = OTHER if has_changed else DATA
    part = begun(folder, site, (whole + b"excess")[:here], whole)
    text = note_path(part).read_text()
    if note == "none":
        note_path(part).unlink()
    else:
        note_path(part).write_text({"right": text, "torn": text[:40]}.get(note, text.replace("http:", "https:")))
    site.always[f"/{NAME}"] = fault
    site.requests.clear()
    fetch(SET, [remote(site)], folder, lock=folder / "lock.json", patience=HASTE)
    is_complete = here == len(DATA) and note in ("right", "of another server")  # of a server we no longer ask
    assert (folder / NAME).read_bytes() == (OTHER if has_changed and is_complete else DATA)
    assert names(folder) == {NAME, "lock.json", ".lock.json.lock"}
    if note == "right" and 0 < here < len(DATA):
        assert site.requests[0].range == f"bytes={here}-"
        assert site.requests[0].if_range == f'"{hashlib.md5(whole).hexdigest()}"'


def test_a_part_is_continued_where_it_is_from_and_nowhere_else(
    site: FaultySite, mirror: FaultySite, folder: Path, tmp_path: Path
) -> None:
    begun(folder, mirror, DATA[:100_000])
    get(folder, remote(site, mirror))
    assert (folder / NAME).read_bytes() == DATA
    assert not site.requests and [request.range for request in mirror.requests] == ["bytes=100000-"]
    site.always[f"/{NAME}"] = Fault(cut_after=100_000, ignores_range=True, body=OTHER)
    assert get(tmp_path / "again", remote(site, mirror))[0].read_bytes() == DATA
    assert mirror.requests[-1].range is None


# Processes


def start(folder: Path, file: RemoteFile, limit: str = "", **environment: str) -> subprocess.Popen[str]:
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs are started without
from datasets.download.fetch import fetch
from datasets.download.servers import Patience
from datasets.spec import DataError, RemoteFile
{limit}
try:
    fetch({SET!r}, [{file!r}], {str(folder)!r}, patience=Patience(stall=20))
except DataError as error:
    sys.exit(str(error))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def wait_for(file: Path, num_bytes: int) -> None:
    deadline = time.monotonic() + 120
    while not file.exists() or file.stat().st_size < num_bytes:
        assert time.monotonic() < deadline, f"{file} has not got {num_bytes} bytes"
        time.sleep(0.01)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_leaves_a_part_that_is_continued(
    ending: signal.Signals, site: FaultySite, folder: Path
) -> None:
    site.faults[f"/{NAME}"] = [Fault(stall_after=123_456)]
    process = start(folder, remote(site))
    part = partial_path(folder / NAME)
    wait_for(part, 123_456)
    process.send_signal(ending)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -ending, errors
    assert names(folder) == {part.name, note_path(part).name} and part.read_bytes() == DATA[:123_456]
    get(folder, remote(site))
    assert (folder / NAME).read_bytes() == DATA and names(folder) == {NAME}
    assert [request.range for request in site.requests] == [None, "bytes=123456-"]


def test_two_processes_fetch_a_file_once(site: FaultySite, folder: Path) -> None:
    site.faults[f"/{NAME}"] = [Fault(stall_after=150_000)]
    first = start(folder, remote(site))
    wait_for(partial_path(folder / NAME), 150_000)
    second = start(folder, remote(site))
    time.sleep(1.0)  # the second one waits meanwhile, or it would send a request of its own
    assert second.poll() is None and len(site.requests) == 1
    site.closing.set()  # ends the stall; the first one asks for the rest
    for process in (first, second):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert [request.range for request in site.requests] == [None, "bytes=150000-"]
    assert (folder / NAME).read_bytes() == DATA and names(folder) == {NAME}


def test_the_second_process_goes_on_where_the_first_was_killed(site: FaultySite, folder: Path) -> None:
    site.faults[f"/{NAME}"] = [Fault(stall_after=150_000)]
    first = start(folder, remote(site))
    wait_for(partial_path(folder / NAME), 150_000)
    second = start(folder, remote(site))
    time.sleep(0.5)
    first.kill()
    first.communicate()
    assert second.communicate(timeout=120)[1] == "" and second.returncode == 0
    assert [request.range for request in site.requests] == [None, "bytes=150000-"]
    assert (folder / NAME).read_bytes() == DATA and names(folder) == {NAME}


def test_processes_started_together_fetch_a_file_once(site: FaultySite, folder: Path) -> None:
    for process in [start(folder, remote(site)) for _ in range(3)]:
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert len(site.requests) == 1 and (folder / NAME).read_bytes() == DATA and names(folder) == {NAME}


def test_a_file_moved_away_while_it_is_being_locked_leaves_the_lock_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "part", fcntl.flock

    def flock_late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.rename(tmp_path / "whole")  # as its last holder does, who then gives up the lock
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with exclusive(path):
        assert (tmp_path / "whole").exists()
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(path, timeout=0, is_singleton=False).acquire()


def test_without_locks_of_the_file_system_a_process_has_a_part_of_its_own(
    site: FaultySite, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    site.faults[f"/{NAME}"] = [Fault(cut_after=100_000)]
    get(folder, remote(site))
    assert (folder / NAME).read_bytes() == DATA and names(folder) == {NAME}
    assert [request.range for request in site.requests] == [None, "bytes=100000-"]


# The disk


def test_a_disk_that_runs_full_is_said_and_the_part_kept(site: FaultySite, folder: Path) -> None:
    process = start(folder, remote(site), "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    _, line = process.communicate(timeout=120)
    assert process.returncode == 1 and line.count("\n") == 1, line
    assert line.startswith(f"no room for {folder / NAME}") and "100,000 bytes, which are kept" in line
    assert names(folder) == {f".{NAME}.partial", f".{NAME}.partial.json"}
    get(folder, remote(site))
    assert (folder / NAME).read_bytes() == DATA and site.requests[-1].range == "bytes=100000-"


def test_too_small_a_disk_is_said_before_anything_is_written(site: FaultySite, folder: Path) -> None:
    site.always[f"/{NAME}"] = Fault(content_length=10**18)
    with pytest.raises(DataError, match=r"1,000,000,000\.000 GB are still to come and .* GB are free"):
        get(folder, remote(site))
    assert not names(folder)


def test_a_folder_that_cannot_be_written_is_said(site: FaultySite, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write .*file/data/data\.bin: Not a directory"):
        get(tmp_path / "file" / "data", remote(site))


# The mirror of a laboratory, proxies


@pytest.mark.parametrize(("kind", "is_in_folder_of_the_set"), [("http", True), ("file", False), ("folder", True)])
def test_the_mirror_is_asked_first(
    kind: str, is_in_folder_of_the_set: bool, site: FaultySite, mirror: FaultySite, folder: Path, tmp_path, monkeypatch
) -> None:
    name = f"{SET}/{NAME}" if is_in_folder_of_the_set else NAME
    mirror.files = {f"/base/{name}": DATA}
    copy = tmp_path / "our mirror" / name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(DATA)
    base = {"http": f"{mirror.url}/base/", "folder": str(tmp_path / "our mirror")}
    monkeypatch.setenv(MIRROR, base.get(kind) or (tmp_path / "our mirror").as_uri())
    get(folder, remote(site))
    assert (folder / NAME).read_bytes() == DATA and not site.requests
    assert names(folder) == {NAME} and name in str(recorded()[f"{SET}/{NAME}"]["url"])


@pytest.mark.parametrize("has_changed", [False, True])
def test_a_copy_from_a_folder_is_continued(has_changed: bool, folder: Path, tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "mirror" / NAME
    copy.parent.mkdir()
    copy.write_bytes(DATA)
    stat = copy.stat()
    monkeypatch.setenv(MIRROR, str(copy.parent))
    folder.mkdir()
    part = partial_path(folder / NAME)
    part.write_bytes(OTHER[:100_000])  # as no copy would be: shows that it is continued
    version = {"url": str(copy), "validator": f"{stat.st_size}-{stat.st_mtime_ns}", "num_bytes": stat.st_size}
    note_path(part).write_text(json.dumps({**version, "sha256": None}))
    if has_changed:
        os.utime(copy, ns=(0, stat.st_mtime_ns + 1))
    get(folder, RemoteFile(NAME))
    assert (folder / NAME).read_bytes() == (DATA if has_changed else OTHER[:100_000] + DATA[100_000:])
    assert names(folder) == {NAME}


def test_what_the_mirror_lacks_comes_from_the_others(site: FaultySite, folder: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(MIRROR, str(tmp_path))
    assert get(folder, remote(site))[0].read_bytes() == DATA
    monkeypatch.setenv(MIRROR, "ftp://server/base")
    line = refusal(tmp_path / "again", RemoteFile("absent.bin", (f"{site.url}/absent.bin",)))
    assert "ftp://server/base/absent.bin: ftp:// is no kind of address" in line and "404 Not Found" in line


def test_a_password_in_an_address_is_not_shown(site: FaultySite, folder: Path) -> None:
    url = site.url.replace("http://", "http://me:secret@")
    get(folder, RemoteFile(NAME, (f"{url}/{NAME}",)))
    assert recorded()[f"{SET}/{NAME}"]["url"] == f"{site.url}/{NAME}"
    assert "secret" not in refusal(folder, RemoteFile("absent.bin", (f"{url}/absent.bin",)))


def test_proxies_of_the_environment_are_used(site: FaultySite, folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.setenv("no_proxy", "")
    get(folder, RemoteFile(NAME, (f"http://server.invalid/{NAME}",)))
    assert [request.path for request in site.requests] == [f"http://server.invalid/{NAME}"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    line = refusal(folder, RemoteFile("other.bin", ("http://server.invalid/other.bin",)))
    assert "proxy: connection refused" in line
