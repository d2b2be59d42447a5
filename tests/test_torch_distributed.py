"""Training in two processes by torch's DistributedDataParallel, beside one process with the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "distributed.py"
OPTIONS = ["--steps", "6", "--batch-size", "6", "--bptt", "9", "--hidden", "24", "--layers", "2"]


def train(processes, folder):
    """Losses of all steps, and gradients of the last."""
    file = folder / f"{processes}.pt"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, PROGRAM, *OPTIONS, "--save", file]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert file.exists(), result.stderr
    return torch.load(file)


def test_two_processes_compute_what_one_does(tmp_path):
    one, two = (train(processes, tmp_path) for processes in (1, 2))
    eps = torch.finfo(torch.float32).eps
    assert len(one["losses"]) == 6
    # Means over rows in another order, and what Adam makes of the difference.
    assert two["losses"] == pytest.approx(one["losses"], rel=200 * eps)
    assert one["grads"].keys() == two["grads"].keys()
    for name, expected in one["grads"].items():
        error = float((two["grads"][name] - expected).abs().max())
        assert error <= 1000 * eps * max(0.01, float(expected.abs().max())), name
