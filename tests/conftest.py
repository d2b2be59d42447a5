"""Settings shared by all tests."""

import os

# NumPy's own threads would spin against the tests' on a busy machine, and make the reference ten times slower. Only
# effective before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis

# Derandomized: the same examples in every run, so that a failure is the commit's and not the day's.
hypothesis.settings.register_profile("fastrnn", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("fastrnn")
