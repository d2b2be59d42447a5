"""Configuration, threads and what an import does."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

import fastrnn
from fastrnn import _core, config
from fastrnn.cuda import cublaslt, extension

pytestmark = pytest.mark.usefixtures("without_cuda")


def test_dicts_say_what_the_core_says():
    found = fastrnn.show_config(mode="dicts")
    core = _core.config()
    assert found["version"] == fastrnn.__version__
    assert found["isa"] == {
        "in_use": core["isa"],
        "compiled": list(core["isa_compiled"]),
        "available": list(core["isa_available"]),
    }
    assert found["isa"]["in_use"] in found["isa"]["available"]
    assert "portable" in found["isa"]["available"]
    assert set(found["isa"]["available"]) <= set(found["isa"]["compiled"])
    assert found["threads"]["count"] == fastrnn.get_num_threads()
    assert found["cuda"]["built"] is False
    assert found["cuda"]["missing"][0] == "this fastrnn was built without CUDA"
    assert found["cuda"]["cublaslt"] is None
    assert found["libraries"]["numpy"]
    assert json.loads(json.dumps(found)) == found


def test_text_is_printed(capsys):
    assert fastrnn.show_config() is None
    out, err = capsys.readouterr()
    assert err == ""
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert list(lines) == [
        "fastrnn", "system", "compiler", "isa", "threads", "cuda", "driver", "devices", "cublaslt", "libraries",
    ]  # fmt: skip
    assert fastrnn.__version__ in lines["fastrnn"]
    assert f"{_core.config()['isa']} (compiled:" in lines["isa"]
    assert str(fastrnn.get_num_threads()) in lines["threads"]
    assert "not available: this fastrnn was built without CUDA" in lines["cuda"]
    assert "numpy" in lines["libraries"]


def test_what_the_kernels_were_built_for_is_told(monkeypatch, capsys):
    kernels = types.ModuleType("fastrnn._cuda")
    kernels.build, kernels.load_cublaslt = "CUDA 13.0 for 80,90a-real", lambda name, resident: 120904
    monkeypatch.setattr(extension, "module", kernels)
    monkeypatch.setattr(extension, "absent", None)
    monkeypatch.setattr(config, "missing_for_cuda", lambda: missing)
    monkeypatch.setenv("FASTRNN_CUDA_PATH", "general")
    monkeypatch.delenv("FASTRNN_CUBLASLT", raising=False)
    monkeypatch.delenv("FASTRNN_CUDA_GRAPHS", raising=False)
    missing = ["no CuPy"]
    found = fastrnn.show_config(mode="dicts")["cuda"]
    assert found["built"] is True
    assert found["build"] == "CUDA 13.0 for 80,90a-real"
    assert found["cublaslt"] == "12.9.4, libcublasLt.so.13 of this process"
    assert found["environment"] == {"FASTRNN_CUDA_PATH": "general"}
    fastrnn.show_config()
    out = capsys.readouterr().out
    assert "built with CUDA 13.0 for 80,90a-real, not available: no CuPy (FASTRNN_CUDA_PATH=general)\n" in out
    assert "cublaslt   12.9.4, libcublasLt.so.13 of this process" in out
    missing = []
    fastrnn.show_config()
    assert "built with CUDA 13.0 for 80,90a-real, available (FASTRNN_CUDA_PATH=general)\n" in capsys.readouterr().out


def test_kernels_are_published_once_they_are_loaded(monkeypatch):
    loading, loads = threading.Event(), []
    kernels = types.SimpleNamespace(sizes=lambda *args: args)

    def load(name):
        loads.append(name)
        loading.set()
        time.sleep(0.05)
        return kernels

    for name in ("module", "absent"):
        monkeypatch.delitem(vars(extension), name, raising=False)
    monkeypatch.setattr(extension, "importlib", types.SimpleNamespace(import_module=load))
    monkeypatch.setattr(cublaslt, "choose", lambda found: None)
    try:
        with ThreadPoolExecutor(2) as pool:
            sizes = pool.submit(extension.sizes, 1, 2, 3)
            assert loading.wait(10)
            other = pool.submit(lambda: (extension.absent, extension.module))
            assert other.result(10) == (None, kernels)
            assert sizes.result(10) == (1, 2, 3)
    finally:
        for name in ("module", "absent"):
            vars(extension).pop(name, None)
    assert loads == ["fastrnn._cuda"]


def test_release_memory_drops_the_graphs_of_kernels_that_were_used(monkeypatch):
    kernels, released = types.ModuleType("fastrnn._cuda"), []
    kernels.release_graphs = lambda: released.append(True)
    monkeypatch.setattr(extension, "module", kernels)
    fastrnn.release_memory()
    assert released == [True]
    monkeypatch.setattr(extension, "module", None)
    fastrnn.release_memory()
    assert released == [True]


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"^show_config: mode must be one of 'text', 'dicts', got 'json'$"):
        fastrnn.show_config("json")


class FakeFunction:
    """One of a fake library's functions: writes results into what its arguments point to."""

    def __init__(self, status, *results):
        self.status, self.results = status, results

    def __call__(self, *args):
        targets = [a for a in args if hasattr(a, "_obj") or hasattr(a, "raw")]
        for target, value in zip(targets, self.results, strict=False):
            if hasattr(target, "raw"):
                target.value = value
            else:
                target._obj.value = value
        return self.status


class FakeLibrary:
    def __init__(self, **functions):
        self.__dict__.update(functions)


def driver_with(monkeypatch, cuda, nvml):
    def load(name):
        library = cuda if "cuda" in name else nvml
        if library is None:
            raise OSError(name)
        return library

    monkeypatch.setattr(config, "_load", load)


CUDA = FakeLibrary(cuDriverGetVersion=FakeFunction(0, 12080))
NVML = FakeLibrary(
    nvmlInit_v2=FakeFunction(0),
    nvmlShutdown=FakeFunction(0),
    nvmlSystemGetDriverVersion=FakeFunction(0, b"570.1"),
    nvmlDeviceGetCount_v2=FakeFunction(0, 2),
    nvmlDeviceGetHandleByIndex_v2=FakeFunction(0, 1),
    nvmlDeviceGetName=FakeFunction(0, b"Some GPU"),
)
BROKEN = FakeLibrary(nvmlInit_v2=FakeFunction(9))
OLD = FakeLibrary(nvmlInit_v2=FakeFunction(0), nvmlShutdown=FakeFunction(0))


@pytest.mark.parametrize(
    ("cuda", "nvml", "driver", "devices"),
    [
        (None, None, None, []),
        (CUDA, NVML, "570.1 (CUDA 12.8)", ["Some GPU", "Some GPU"]),
        (CUDA, None, "CUDA 12.8", []),
        (CUDA, BROKEN, "CUDA 12.8", []),
        (CUDA, OLD, "CUDA 12.8", []),
        (FakeLibrary(cuDriverGetVersion=FakeFunction(3)), None, None, []),
        (FakeLibrary(), None, None, []),
    ],
    ids=["none", "both", "no nvml", "broken nvml", "old nvml", "broken driver", "not a driver"],
)
def test_the_driver_is_looked_for_and_never_fails(monkeypatch, capsys, cuda, nvml, driver, devices):
    driver_with(monkeypatch, cuda, nvml)
    found = fastrnn.show_config(mode="dicts")["cuda"]
    assert found["driver"] == driver
    assert found["devices"] == devices
    missing = ["this fastrnn was built without CUDA"]
    missing += [] if driver else ["no NVIDIA driver found on this machine"]
    if importlib.util.find_spec("cupy") is None:
        missing.append("CuPy is not installed, which holds a layer's weights: pip install 'fastrnn[cuda]'")
    assert found["missing"] == missing
    with pytest.raises(RuntimeError) as info:
        fastrnn.GRU(4, 5, device="cuda")
    assert str(info.value) == f"gru: device 'cuda' is not available: {'; '.join(missing)}"
    fastrnn.show_config()
    assert (driver or "no NVIDIA driver found") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("n", "error"),
    [(n, ValueError) for n in (0, -2, 1025, 2**70)] + [(n, TypeError) for n in (True, 1.0, None, "2")],
)
def test_number_of_threads_is_checked(n, error):
    before = fastrnn.get_num_threads()
    with pytest.raises(error) as info:
        fastrnn.set_num_threads(n)
    assert str(info.value) == f"set_num_threads: n must be an integer from 1 to 1024, got {n!r}"
    assert fastrnn.get_num_threads() == before


def test_number_of_threads():
    before = fastrnn.get_num_threads()
    try:
        for n in (1, 3, 1024):
            fastrnn.set_num_threads(n)
            assert fastrnn.get_num_threads() == n
            assert fastrnn.show_config(mode="dicts")["threads"]["count"] == n
    finally:
        fastrnn.set_num_threads(before)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_environment_is_shown():
    code = "import fastrnn, json; print(json.dumps(fastrnn.show_config('dicts')))"
    done = python(code, FASTRNN_NUM_THREADS="3", FASTRNN_ISA="portable")
    found = json.loads(done.stdout)
    assert found["threads"] == {
        "count": 3,
        "environment": {"FASTRNN_ISA": "portable", "FASTRNN_NUM_THREADS": "3"}
        | {name: os.environ[name] for name in ["OMP_NUM_THREADS"] if name in os.environ},
    }
    assert found["isa"]["in_use"] == "portable"


@pytest.mark.parametrize("isa", ["sse9", "AVX2 ", "neon"])
def test_an_isa_that_the_machine_lacks_is_an_error_of_the_import(isa):
    done = python("import fastrnn", FASTRNN_ISA=isa)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert "FASTRNN_ISA" in last
    assert isa in last
    for name in _core.config()["isa_available"]:
        assert name in last


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "2000"])
def test_a_wrong_number_of_threads_in_the_environment_is_an_error(value):
    done = python("import fastrnn; fastrnn.get_num_threads()", FASTRNN_NUM_THREADS=value)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert "FASTRNN_NUM_THREADS" in last
    assert value in last


def test_the_command_reports_the_environment_itself(tmp_path):
    # As an installer writes it: the package is imported before main can catch anything.
    script = tmp_path / "fastrnn"
    script.write_text("import sys\nfrom fastrnn.cli import main\nsys.exit(main())\n")
    wrong = [("FASTRNN_ISA", "foo"), ("FASTRNN_NUM_THREADS", "abc")]
    for command in (["-m", "fastrnn"], ["-mfastrnn"], [str(script)]):
        for name, value in wrong:
            done = subprocess.run(
                [sys.executable, *command, "info"], env=os.environ | {name: value}, capture_output=True, text=True
            )
            assert done.returncode == 2
            assert done.stdout == ""
            assert done.stderr.startswith("fastrnn: ")
            assert name in done.stderr
            assert value in done.stderr
            assert done.stderr.count("\n") == 1


def test_another_module_run_by_name_is_not_the_command(tmp_path):
    (tmp_path / "program.py").write_text("import fastrnn\n")
    done = subprocess.run(
        [sys.executable, "-m", "program", "-m", "fastrnn"],
        env=os.environ | {"FASTRNN_ISA": "foo"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: ")


def test_importing_does_not_import_optional_libraries():
    names = ("torch", "cupy", "rich", "fastrnn.models", "fastrnn._cuda")
    code = f"import sys, fastrnn; fastrnn.GRU(2, 3); print([m for m in {names} if m in sys.modules])"
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr
