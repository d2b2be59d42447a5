"""Settings shared by all tests."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

# On a busy machine threads that spin while they wait take the cores from those that they wait for: NumPy's would make
# the reference ten times slower, torch's some tests a hundred times. Only effective before these are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest

# Jobs in the background may be started with Ctrl-C ignored, which Python and processes below it would take over.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Derandomized: the same examples in every run, so that a failure is the commit's and not the day's.
hypothesis.settings.register_profile("fastrnn", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("fastrnn")


@pytest.fixture
def benchmarks():
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    if not folder.is_dir():
        pytest.skip("benchmarks/ is not beside the tests")
    return folder


@pytest.fixture
def script(benchmarks, monkeypatch, request):
    """Imports a script of the folder in benchmarks/ that the test's module has as FOLDER, as one beside it does."""
    folder = benchmarks / request.module.FOLDER
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (folder / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def table(benchmarks):
    """benchmarks/table.py"""
    spec = importlib.util.spec_from_file_location("table", benchmarks / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Runs a script as from a shell: its status, and what it has written on standard output and standard error."""

    def run_main(module, *args):
        monkeypatch.setattr(sys, "argv", [Path(module.__file__).name, *map(str, args)])
        return module.main(), *capsys.readouterr()

    return run_main


@pytest.fixture
def steps(monkeypatch):
    """The kind of model of each training step that is taken."""
    from fastrnn.models.training import Trainer

    taken, step = [], Trainer.step

    def counted(self, *args):
        taken.append(type(self.model).__name__)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", counted)
    return taken


@pytest.fixture
def torch():
    """On one thread: models are tiny, and a script sets the number."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture
def without_cuda(monkeypatch):
    """As if fastrnn had been built without CUDA."""
    from fastrnn.cuda import extension

    monkeypatch.setattr(extension, "module", None)
    monkeypatch.setattr(extension, "absent", "this fastrnn was built without CUDA")
