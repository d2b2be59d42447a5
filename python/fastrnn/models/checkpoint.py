"""A model on disk: ``model.json`` and NumPy ``.npz`` archives that it names, nothing pickled.

Every archive has a file name of its own, made from its content, and ``model.json`` holds its SHA-256. New archives are
written and synced first; renaming the new ``model.json`` over the old one is the only step that makes them current, and
old archives go last. Whenever the machine stops, the folder holds either the old model or the new one, complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_INDEX = "model.json"
_VERSION = 1
_ARCHIVE = re.compile(r"(?P<role>[a-z]+)-(?P<digest>[0-9a-f]{12})\.npz")


def write(
    folder: str | os.PathLike[str], kind: str, data: Mapping[str, Any], archives: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Make ``data`` (JSON) and ``archives`` (role -> arrays) the content of ``folder``, which is made if missing."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    files = {role: _write_archive(path, role, arrays) for role, arrays in archives.items()}
    _sync_folder(path)
    index = {"format": kind, "version": _VERSION, **data, "files": files}
    text = json.dumps(index, indent=1, allow_nan=False) + "\n"
    _write_file(path, lambda file: file.write(text.encode("ascii")), lambda _: _INDEX)
    _sync_folder(path)
    current = {entry["name"] for entry in files.values()}
    for entry in path.iterdir():
        if _ARCHIVE.fullmatch(entry.name) and entry.name not in current:
            entry.unlink(missing_ok=True)


def read(
    where: str, folder: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """What ``write`` wrote. FileNotFoundError or a one-line ValueError, naming the file, for anything else."""
    path = Path(folder)
    index = path / _INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{where}: {path} holds no saved model: {_INDEX} is missing")
    try:
        data = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {index} is damaged: not JSON ({error})") from None
    if not isinstance(data, dict) or data.pop("format", None) != kind:
        raise ValueError(f"{where}: {index} is not a {kind}")
    if (version := data.pop("version", None)) != _VERSION:
        raise ValueError(
            f"{where}: {index} must have version {_VERSION}, got {version!r}: read it with the fastrnn that wrote it"
        )
    files = data.pop("files", None)
    if not isinstance(files, dict):
        raise ValueError(f"{where}: {index} is damaged: files is missing")
    return data, {role: _read_archive(where, path, role, entry) for role, entry in files.items()}


def _write_archive(path: Path, role: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    digest = ""

    def save(file: BinaryIO) -> None:
        entries: dict[str, Any] = dict(arrays)
        np.savez(file, **entries)

    def name(temporary: Path) -> str:
        nonlocal digest
        with temporary.open("rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return f"{role}-{digest[:12]}.npz"

    return {"name": _write_file(path, save, name), "sha256": digest}


def _read_archive(where: str, path: Path, role: str, entry: Any) -> dict[str, np.ndarray]:
    name = entry.get("name") if isinstance(entry, dict) else None
    # Only a plain name of our own making: an index cannot point outside its folder.
    if not isinstance(name, str) or not (match := _ARCHIVE.fullmatch(name)) or match["role"] != role:
        raise ValueError(f"{where}: {path / _INDEX} is damaged: bad entry for {role!r}")
    file_path = path / name
    if not file_path.is_file():
        raise FileNotFoundError(f"{where}: {file_path} is missing")
    with file_path.open("rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != entry.get("sha256"):
            raise ValueError(f"{where}: {file_path} is not the file that {_INDEX} describes: truncated or changed")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{where}: {file_path} is damaged ({error})") from None


def _write_file(path: Path, save: Callable[[BinaryIO], Any], name: Callable[[Path], str]) -> str:
    """Write a temporary file, sync it, rename it to ``name(temporary)``; nothing stays behind when that fails."""
    temporary = path / f".writing-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        final = name(temporary)
        os.replace(temporary, path / final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return final


def _sync_folder(path: Path) -> None:
    """Make the renames themselves durable, where the system can sync a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
