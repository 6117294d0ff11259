"""A copy of the code that the jobs of a grid run: what was submitted is what runs, whatever happens to the checkout."""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.protocol.plugins import loaded_plugins
from bench.runs.contract import StorageError
from bench.runs.provenance import PACKAGES_OF_OURS, ROOT, SNAPSHOT_FILE, commit


def snapshot_path(folder: Path) -> Path:
    """Where a snapshot of the packages as they are now lies: `folder/<hash>`."""
    return folder / _digest(_contents())


def take_snapshot(snapshot: Path) -> None:
    """Copies our packages to where `snapshot_path` has said; one that is there already is used again.

    Raises StorageError where it cannot be written, or where a file has changed since.
    """
    if snapshot.is_dir():
        return
    contents = _contents()
    if _digest(contents) != snapshot.name:
        raise StorageError("the code was edited while it was being copied: launch again")
    draft = snapshot.with_name(f".{snapshot.name}.{secrets.token_hex(4)}")
    try:
        for path, content in contents.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_bytes(content)
        (draft / SNAPSHOT_FILE.name).write_text(_origin())
        draft.rename(snapshot)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not snapshot.is_dir():  # else another launch of the same code was faster
            raise StorageError(f"cannot copy the code to {snapshot}: {error.strerror}") from error


def _contents() -> dict[Path, bytes]:
    ours = {
        path.relative_to(ROOT): path.read_bytes()
        for package in PACKAGES_OF_OURS
        for path in sorted((ROOT / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    theirs = {path.relative_to(root): path.read_bytes() for root, path in _plugin_files()}
    return {**theirs, **ours}


def _plugin_files() -> Iterator[tuple[Path, Path]]:
    """The Python files of each plugin, of a package all that it has, and the folder that each is imported from."""
    for module, file in loaded_plugins().items():
        root = plugin_root(module, file)
        whole = root / module.partition(".")[0]
        yield from ((root, path) for path in (sorted(whole.rglob("*.py")) if whole.is_dir() else [file]))


def plugin_root(module: str, file: Path) -> Path:
    """The folder that a module is imported from."""
    return file.absolute().parents[module.count(".") + (file.name == "__init__.py")]


def _digest(contents: dict[Path, bytes]) -> str:
    digest = hashlib.sha256(_origin().encode())
    for path, content in contents.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _origin() -> str:
    return json.dumps(commit(), sort_keys=True) + "\n"
