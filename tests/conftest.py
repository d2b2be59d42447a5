"""Settings shared by all tests."""

import os
import signal

# NumPy's own threads would spin against the tests' on a busy machine, and make the reference ten times slower. Only
# effective before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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
