"""Which cuBLASLt is chosen: where it is looked for, in which order, and what the environment variable does."""

import sys
import types

import pytest

from fastrnn.cuda import cublaslt

SONAMES = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"]


class Kernels:
    """Stands in for fastrnn._cuda: loads what it is told that there is."""

    def __init__(self, *there):
        self.there, self.asked, self.unloaded = there, [], False

    def load_cublaslt(self, name, resident):
        self.asked.append((name, resident))
        if (name, resident) not in self.there:
            raise RuntimeError(f"{name}: no such file")
        return 120803

    def unload_cublaslt(self):
        self.unloaded = True


@pytest.fixture
def wheels(monkeypatch, tmp_path):
    """A function that puts libraries into site-packages and gives their paths."""
    monkeypatch.delenv("FASTRNN_CUBLASLT", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)

    def put(*names):
        paths = [tmp_path / "nvidia" / name for name in names]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return list(map(str, paths))

    return put


def test_places_are_looked_at_in_their_order(wheels):
    twelve, thirteen = wheels("cublas/lib/libcublasLt.so.12", "cu13/lib/libcublasLt.so.13")
    wheels("cublas/lib/libcublas.so.12", "cublas/include/cublasLt.h")
    kernels = Kernels()
    assert cublaslt.choose(kernels) == (None, None, "none found")
    resident, system = [(name, True) for name in SONAMES], [(name, False) for name in SONAMES]
    assert kernels.asked == [*resident, (thirteen, False), (twelve, False), *system]


def test_the_first_that_loads_is_taken(wheels):
    path = wheels("cublas/lib/libcublasLt.so.12")[0]
    kernels = Kernels((path, False), ("libcublasLt.so.13", False))
    assert cublaslt.choose(kernels) == (path, "12.8.3", f"12.8.3, {path}")
    assert kernels.asked[-1] == (path, False)
    in_process = Kernels(("libcublasLt.so.12", True), (path, False))
    assert cublaslt.choose(in_process) == ("libcublasLt.so.12", "12.8.3", "12.8.3, libcublasLt.so.12 of this process")
    assert in_process.asked == [(name, True) for name in SONAMES[:2]]


def test_the_pathfinder_goes_before_the_search(wheels, monkeypatch):
    wheels("cublas/lib/libcublasLt.so.12")
    finder = types.ModuleType("cuda.pathfinder")
    finder.load_nvidia_dynamic_lib = lambda name: types.SimpleNamespace(abs_path=f"/opt/{name}.so")
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", finder)
    kernels = Kernels(("/opt/cublasLt.so", False))
    assert cublaslt.choose(kernels).name == "/opt/cublasLt.so"
    assert len(kernels.asked) == 4

    def fails(name):
        raise OSError("nothing here")

    finder.load_nvidia_dynamic_lib = fails
    kernels = Kernels(("libcublasLt.so.11", False))
    assert cublaslt.choose(kernels).name == "libcublasLt.so.11"


def test_without_wheels(wheels):
    kernels = Kernels()
    assert cublaslt.choose(kernels).text == "none found"
    assert len(kernels.asked) == 6


def test_the_choice_is_made_once(wheels, monkeypatch):
    kernels = Kernels(("libcublasLt.so.11", False))
    first = cublaslt.choose(kernels)
    asked = len(kernels.asked)
    monkeypatch.setenv("FASTRNN_CUBLASLT", "off")
    assert cublaslt.choose(kernels) is first
    assert len(kernels.asked) == asked


def test_the_environment_variable(wheels, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUBLASLT", "off")
    kernels = Kernels(("libcublasLt.so.13", True))
    assert cublaslt.choose(kernels) == (None, None, "off, as FASTRNN_CUBLASLT asks")
    assert kernels.unloaded
    assert not kernels.asked
    monkeypatch.setenv("FASTRNN_CUBLASLT", "/opt/mine.so")
    kernels = Kernels(("/opt/mine.so", False), ("libcublasLt.so.13", True))
    assert cublaslt.choose(kernels) == ("/opt/mine.so", "12.8.3", "12.8.3, /opt/mine.so")
    kernels = Kernels(("libcublasLt.so.13", True))
    message = (
        r"^FASTRNN_CUBLASLT must be 'auto', 'off' or the path of a cuBLASLt, got '/opt/mine.so': "
        r"/opt/mine.so: no such file$"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            cublaslt.choose(kernels)
    monkeypatch.setenv("FASTRNN_CUBLASLT", "auto")
    assert cublaslt.choose(kernels).name == "libcublasLt.so.13"
