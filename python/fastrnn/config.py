"""What this build of fastrnn is and what it found on this machine."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

from . import _core
from .checks import check_choice
from .cuda import cublaslt, extension

#: Libraries that fastrnn or its extras work with, and the distributions that carry them.
_LIBRARIES = {
    "numpy": ("numpy",),
    "torch": ("torch",),
    "cupy": ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x"),
    "tokenizers": ("tokenizers",),
    "safetensors": ("safetensors",),
    "rich": ("rich",),
    "sacrebleu": ("sacrebleu",),
    "matplotlib": ("matplotlib",),
}
#: Variables that are heard, by what they are about.
_ENVIRONMENT = {
    "threads": ("FASTRNN_ISA", "FASTRNN_NUM_THREADS", "OMP_NUM_THREADS"),
    "cuda": ("FASTRNN_CUDA_PATH", "FASTRNN_CUDA_GRAPHS", cublaslt.VARIABLE),
}


def show_config(mode: str = "text") -> dict[str, Any] | None:
    """Prints version, instruction sets, threads, CUDA build, devices, driver and libraries found.

    Args:
        mode: "text" prints; "dicts" returns the same as nested dicts of plain values.

    Raises:
        ValueError: another mode.

    Example:
        >>> import fastrnn
        >>> sorted(fastrnn.show_config(mode="dicts"))
        ['cuda', 'isa', 'libraries', 'machine', 'threads', 'version']
    """
    if check_choice("show_config", "mode", mode, ("text", "dicts")) == "dicts":
        return collect()
    print("\n".join(describe(collect())))
    return None


def check_environment() -> None:
    """Reads FASTRNN_ISA and FASTRNN_NUM_THREADS.

    The command is let off here: its own errors are one line, and it meets this one again on its first use of the core.

    Raises:
        ValueError: a value that is not a number of threads, or an instruction set that this machine lacks.
    """
    try:
        _core.config()
    except ValueError:
        if not _is_command():
            raise


def _is_command() -> bool:
    # By how Python was started, as `python -m fastrnn` and the installed script both import the package before any
    # code of the command runs. Taking a program of the same name for it only delays the error.
    argv = getattr(sys, "argv", None) or [""]
    if argv[0] != "-m":
        return os.path.basename(argv[0]).removesuffix(".exe") == "fastrnn"
    # "-m": the module is being looked for; in the original arguments its name precedes the same ones as here.
    return sys.orig_argv[-len(argv)] in ("fastrnn", "-mfastrnn")


def collect() -> dict[str, Any]:
    """The configuration as nested dicts that JSON can hold."""
    core = _core.config()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "version": version(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version() + ("" if gil else " without GIL"),
            "compiler": core["compiler"],
        },
        "isa": {
            "in_use": core["isa"],
            "compiled": list(core["isa_compiled"]),
            "available": list(core["isa_available"]),
        },
        "threads": {
            "count": _core.get_num_threads(),
            "environment": _environment("threads"),
        },
        "cuda": {
            "built": cuda_build() is not None,
            "build": cuda_build(),
            "missing": missing_for_cuda(),
            "driver": cuda_driver(),
            "devices": cuda_devices(),
            "cublaslt": cuda_cublaslt(),
            "environment": _environment("cuda"),
        },
        "libraries": libraries(),
    }


def _environment(section: str) -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT[section] if name in os.environ}


def describe(config: dict[str, Any]) -> Iterator[str]:
    """The lines of the text form."""
    machine, isa, threads, cuda = config["machine"], config["isa"], config["threads"], config["cuda"]

    def variables(section: dict[str, Any]) -> str:
        text = ", ".join(f"{name}={value}" for name, value in section["environment"].items())
        return f" ({text})" if text else ""

    rows = {
        "fastrnn": config["version"],
        "system": f"{machine['system']}, Python {machine['python']}",
        "compiler": machine["compiler"],
        "isa": f"{isa['in_use']} (compiled: {', '.join(isa['compiled'])}; available: {', '.join(isa['available'])})",
        "threads": f"{threads['count']}{variables(threads)}",
        "cuda": (f"built with {cuda['build']}, " if cuda["built"] else "")
        + (f"not available: {'; '.join(cuda['missing'])}" if cuda["missing"] else "available")
        + variables(cuda),
        "driver": cuda["driver"] or "no NVIDIA driver found",
        "devices": ", ".join(cuda["devices"]) or "none",
        "cublaslt": cuda["cublaslt"] or "not looked for without the CUDA kernels",
        "libraries": ", ".join(f"{name} {number or 'not found'}" for name, number in config["libraries"].items()),
    }
    width = max(map(len, rows))
    for name, text in rows.items():
        yield f"{name:<{width}}  {text}"


def version() -> str:
    from . import __version__

    return __version__


def libraries() -> dict[str, str | None]:
    """Installed versions, read from package metadata: nothing is imported."""
    return {name: next(filter(None, map(_installed, names)), None) for name, names in _LIBRARIES.items()}


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except Exception:  # missing, or metadata damaged in whatever way: not found
        return None


def missing_for_cuda() -> list[str]:
    """Why device="cuda" cannot be used, as far as can be told without initialising CUDA."""
    missing = [] if extension.absent is None else [extension.absent]
    if cuda_driver() is None:
        missing.append("no NVIDIA driver found on this machine")
    if importlib.util.find_spec("cupy") is None:
        missing.append("CuPy is not installed, which holds a layer's weights: pip install 'fastrnn[cuda]'")
    return missing


def cuda_build() -> str | None:
    """The CUDA and the GPUs that the kernels were compiled with and for, None without them. Needs no driver."""
    return None if extension.module is None else extension.module.build


def cuda_cublaslt() -> str | None:
    """Version and place of the cuBLASLt that the kernels leave large products to, or why there is none; None without
    the kernels. Loads it.

    Raises:
        ValueError: FASTRNN_CUBLASLT names what is none.
    """
    return None if extension.module is None else cublaslt.choose(extension.module).text


def cuda_driver() -> str | None:
    """Version of the NVIDIA driver and of the CUDA it supports, None without one.

    Neither this nor ``cuda_devices`` initialises CUDA, which would break it in processes forked later.
    """
    try:
        cuda = _load("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        number = ctypes.c_int()
        if cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
        supported = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    except (OSError, AttributeError):
        return None
    with _Nvml() as nvml:
        release = nvml and nvml.text("nvmlSystemGetDriverVersion")
    return f"{release} ({supported})" if release else supported


def cuda_devices() -> list[str]:
    """Names of the NVIDIA devices."""
    with _Nvml() as nvml:
        return nvml.devices() if nvml else []


class _Nvml:
    """NVIDIA's management library for the time of a ``with``, which gives None where it is missing or fails."""

    def __enter__(self) -> _Nvml | None:
        self._library = None
        try:
            library = _load("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
            if library.nvmlInit_v2() != 0:
                return None
        except (OSError, AttributeError):
            return None
        self._library = library
        return self

    def __exit__(self, *_: object) -> None:
        if self._library is not None:
            self._library.nvmlShutdown()

    def text(self, function: str, *args: Any) -> str | None:
        buffer = ctypes.create_string_buffer(96)
        try:
            failed = getattr(self._library, function)(*args, buffer, ctypes.c_uint(len(buffer)))
        except AttributeError:
            return None
        return None if failed else buffer.value.decode("utf-8", "replace")

    def devices(self) -> list[str]:
        assert self._library is not None
        count, names = ctypes.c_uint(), []
        try:
            if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
                return []
            for index in range(count.value):
                handle = ctypes.c_void_p()
                if self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
                    names.append(self.text("nvmlDeviceGetName", handle) or "unnamed device")
        except AttributeError:
            pass
        return names


def _load(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(name)
