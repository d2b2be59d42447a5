"""A model on disk: ``model.json`` and the ``.safetensors`` archives that it names, nothing pickled.

Every archive has a file name of its own, made from its content, and ``model.json`` holds its SHA-256, and one of the
rest of ``model.json`` itself. All new files are first written and synced in a temporary folder, which goes however that
ends: a full disk shows before the model is touched. Renaming the new ``model.json`` over the old one is the only step
that makes them current, and old archives go last. Whenever the machine stops, the folder holds either the old model or
the new one, complete. What a killed process leaves in the temporary folder goes with the next write.

Models of a training run hold its name under ``run``. The best one of a run is in a folder of its own in that of the
latest; beside one that is of another run, or of none, it counts for nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import safetensors

BEST = "best"  # folder of the best model of a training run, in that of the latest
RUN = "run"  # key of the name of the run that a model is of
_INDEX = "model.json"
_VERSION = 2
_ARCHIVE = re.compile(r"(?P<role>[a-z]+)-[0-9a-f]{12}\.safetensors")


def write(
    folder: str | os.PathLike[str], kind: str, data: Mapping[str, Any], archives: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Make ``data`` (JSON) and ``archives`` (role -> arrays) the content of ``folder``, which is made if missing.

    An OSError names the file that could not be written. Unless the new ``model.json`` was in place by then, the model
    that was there still is.
    """
    with _advice():
        _write(folder, kind, data, archives)


def _write(
    folder: str | os.PathLike[str], kind: str, data: Mapping[str, Any], archives: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    files = {}
    with _beside(path / _INDEX) as temporary:
        renames = []
        for role, arrays in archives.items():
            written = write_file(temporary / f"{role}.safetensors", partial(safetensors.save, arrays=arrays))
            with written.open("rb") as file:
                digest = sha256(file)
            files[role] = {"name": f"{role}-{digest[:12]}.safetensors", "sha256": digest}
            renames.append((written, path / files[role]["name"]))
        index = {"format": kind, "version": _VERSION, **data, "files": files}
        text = json.dumps(index | {"sha256": digest_of(index)}, indent=1, allow_nan=False) + "\n"
        new_index = write_file(temporary / _INDEX, lambda file: file.write(text.encode("ascii")))
        for written, final in renames:
            os.replace(written, final)
        sync_folder(path)
        os.replace(new_index, path / _INDEX)
        sync_folder(path)
    _remove_archives(path, {entry["name"] for entry in files.values()})


def best_or_latest(folder: str | os.PathLike[str]) -> Path:
    """Where the best model of a training run is, or the one that stands there alone.

    A ValueError names an index that is damaged: which of the two is the best one is then unknown.
    """
    path, best = Path(folder), Path(folder, BEST)
    if not (best / _INDEX).is_file():
        return path
    return best if not (path / _INDEX).is_file() or _same_run(best, path) else path


def remove_best_of_others(folder: str | os.PathLike[str]) -> None:
    """The best model, unless it is of the run that the latest is of; after this one was written.

    A damaged one stays: of which run it is cannot be told.
    """
    path, best = Path(folder), Path(folder, BEST)
    try:
        of_another = (best / _INDEX).is_file() and not _same_run(best, path)
    except ValueError:
        return
    if of_another:
        (best / _INDEX).unlink()  # first: without it the rest is no model
        _remove_archives(best, ())
        with suppress(OSError):  # others may have files there
            best.rmdir()


def _same_run(best: Path, latest: Path) -> bool:
    indexes = [folder / _INDEX for folder in (best, latest)]
    runs = [_whole("load", index, _read_index("load", index)).get(RUN) for index in indexes]
    return runs[0] is not None and runs[0] == runs[1]


def peek(folder: Path, key: str) -> Any:
    """What ``model.json`` has under a key, without a check; None where it has nothing, is missing or damaged."""
    try:
        return _read_index("", folder / _INDEX).get(key)
    except (ValueError, FileNotFoundError):
        return None


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Before long work whose result goes there: an OSError unless files can be made in it."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with naming(path), tempfile.TemporaryFile(dir=path):
        pass


def _remove_archives(path: Path, kept: Container[str]) -> None:
    for entry in path.iterdir():
        if _ARCHIVE.fullmatch(entry.name) and entry.name not in kept:
            entry.unlink(missing_ok=True)


def read(
    where: str, folder: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """What ``write`` wrote.

    FileNotFoundError or a one-line ValueError, naming the file, for anything else.
    """
    path = Path(folder)
    index = path / _INDEX
    data = _read_index(where, index)
    if data.get("format") != kind:
        raise ValueError(f"{where}: {index} is not a {kind}")
    data = _whole(where, index, data)
    del data["format"], data["version"]
    files = data.pop("files", None)
    if not isinstance(files, dict):
        raise _damaged(where, index, "files is missing")
    return data, {role: _read_archive(where, path, role, entry) for role, entry in files.items()}


def kind_of(where: str, folder: str | os.PathLike[str]) -> Any:
    """The ``kind`` that ``write`` was given; errors as in ``read``."""
    return _read_index(where, Path(folder, _INDEX)).get("format")


def _read_index(where: str, index: Path) -> dict[str, Any]:
    if not index.is_file():
        raise FileNotFoundError(f"{where}: {index.parent} holds no saved model: {_INDEX} is missing")
    try:
        data = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(where, index, f"not JSON ({error})") from None
    if not isinstance(data, dict):
        raise _damaged(where, index, "not a JSON object")
    return data


def _whole(where: str, index: Path, data: dict[str, Any]) -> dict[str, Any]:
    """What an index holds beside its checksum, if it is as it was written."""
    if (version := data.get("version")) != _VERSION:
        raise ValueError(
            f"{where}: {index} must have version {_VERSION}, got {version!r}: read it with the fastrnn that wrote it"
        )
    rest = {key: value for key, value in data.items() if key != "sha256"}
    if data.get("sha256") != digest_of(rest):
        raise _damaged(where, index, "truncated, or changed by hand")
    return rest


def _damaged(where: str, file: Path, why: str) -> ValueError:
    folder = file.parent
    if folder.name == BEST and (folder.parent / _INDEX).is_file():
        remedy = f"without {folder}, what is in {folder.parent} counts"
    elif (folder / BEST / _INDEX).is_file():
        remedy = f"the best model of a run is in {folder / BEST}"
    else:
        remedy = "it must be saved or trained anew"
    return ValueError(f"{where}: {file} is damaged: {why}; {remedy}")


def _read_archive(where: str, path: Path, role: str, entry: Any) -> dict[str, np.ndarray]:
    name = entry.get("name") if isinstance(entry, dict) else None
    # Only a plain name of our own making: an index cannot point outside its folder.
    if not isinstance(name, str) or not (match := _ARCHIVE.fullmatch(name)) or match["role"] != role:
        raise _damaged(where, path / _INDEX, f"bad entry for {role!r}")
    file_path = path / name
    if not file_path.is_file():
        raise FileNotFoundError(f"{where}: {file_path} is missing")
    with file_path.open("rb") as file:
        if sha256(file) != entry.get("sha256"):
            raise _damaged(where, file_path, f"not the file that {_INDEX} describes, truncated or changed")
        try:
            return safetensors.load(file)
        except (ValueError, OSError) as error:
            raise _damaged(where, file_path, str(error)) from None


def digest_of(index: Mapping[str, Any]) -> str:
    """SHA-256 of what ``model.json`` holds beside it, whatever its layout."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode("ascii")).hexdigest()


def sha256(file: BinaryIO) -> str:
    """Of the whole file, a piece at a time; then it stands at its beginning again."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()


def replace_file(path: Path, save: Callable[[BinaryIO], Any]) -> None:
    """Write a file in place of what is there; when that fails or is cut off, it stays."""
    with _advice():
        with _beside(path) as temporary:
            os.replace(write_file(temporary / path.name, save), path)
        sync_folder(path.parent)


@contextmanager
def _advice() -> Iterator[None]:
    """What to do about a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.strerror = f"{error.strerror} (free some, then save or resume: nothing that was saved is lost)"
        raise


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary folder for what takes the place of a file.

    Its name is the file's, so that one left by a killed process is found, and that of another file is not touched.
    """
    folder = path.with_name(f".writing-{path.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, save: Callable[[BinaryIO], Any]) -> Path:
    with naming(path), path.open("xb") as file:
        save(file)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of a file that is open already has no name: it gets this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def sync_folder(path: Path) -> None:
    """Make the renames themselves durable, where the system can sync a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)
