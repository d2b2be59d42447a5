"""Settings shared by all tests."""

import os
import signal

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
def without_cuda(monkeypatch):
    """As if fastrnn had been built without CUDA."""
    from fastrnn.cuda import extension

    monkeypatch.setattr(extension, "module", None)
    monkeypatch.setattr(extension, "absent", "this fastrnn was built without CUDA")
