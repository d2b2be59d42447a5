"""Builds fastrnn for the GPU of this machine, tests it there, and measures it beside PyTorch's cuDNN.

    python benchmarks/gpu_check.py [--only build,tests,sanitizer,latency,bench] [--json FILE] [--markdown FILE]

For a machine without network: needs nvcc, CMake, a C++ compiler, and in the Python that runs it NumPy, pybind11, pytest
and a PyTorch that sees the GPU. Everything is built in a directory of its own, which --build-dir keeps. Parts that do
not fit into --minutes are left out and said to be. Results go to standard output last; the exit status is 1 if a test
failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("build", "tests", "sanitizer", "latency", "bench")
SANITIZED = "several_blocks or added_to or nothing_to_do"

#: T, B, I, H, L, bidirectional
SHAPES = (
    (1000, 8, 64, 64, 1, False),
    (1000, 16, 128, 128, 1, False),
    (256, 32, 256, 256, 1, False),
    (256, 32, 256, 256, 1, True),
    (512, 16, 512, 512, 1, False),
    (1024, 16, 768, 768, 1, False),
    (256, 64, 1024, 1024, 1, False),
    (128, 128, 1024, 1024, 2, False),
    (100, 20, 650, 650, 2, False),
    (128, 32, 512, 512, 4, False),
)
NUMBERS = ("bfloat16", "float16", "tf32", "float32")
GATES = {"lstm": 4, "gru": 3}
#: Dense products of an H200 or H100, TFLOP/s; bytes/s of their L2.
PEAK = {"bfloat16": 790e12, "float16": 790e12, "tf32": 400e12, "float32": 67e12}
L2_BANDWIDTH = 5.5e12
POINTWISE = 0.12e-6


class Checks:
    """One run of the script: what is asked for, what was found, when it must end."""

    def __init__(self, options: argparse.Namespace, build: Path) -> None:
        self.options, self.build = options, build
        self.package = build / "package"
        self.deadline = time.monotonic() + 60 * options.minutes
        self.results: dict[str, Any] = {"left_out": []}
        self.environment = {**os.environ, "PYTHONPATH": f"{self.package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, *command: str | Path, seconds: float = 1e9) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=max(1.0, min(seconds, self.seconds_left)),
        )  # fmt: skip

    def part_build(self) -> None:
        import pybind11

        start = time.monotonic()
        configure = self.run(
            "cmake", "-S", ROOT, "-B", self.build, "-DFASTRNN_CUDA=ON", "-DFASTRNN_CUDA_ARCHS=native",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        )  # fmt: skip
        made = configure.returncode or self.run("cmake", "--build", self.build, "-j", str(os.cpu_count())).returncode
        if made:
            raise SystemExit(
                f"gpu_check: the build failed:\n{configure.stdout}\n{self.run('cmake', '--build', self.build).stdout}"
            )
        self.package.mkdir(exist_ok=True)
        shutil.copytree(ROOT / "python" / "fastrnn", self.package / "fastrnn", dirs_exist_ok=True)
        for module in self.build.rglob("_c*.so"):
            if self.package not in module.parents:
                shutil.copy(module, self.package / "fastrnn")
        self.results["build_seconds"] = round(time.monotonic() - start, 1)

    def part_tests(self) -> None:
        done = self.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda_kernels.py")
        self.results["tests"] = {"passed": done.returncode == 0, "last_line": done.stdout.strip().splitlines()[-1]}
        if done.returncode:
            self.results["tests"]["output"] = done.stdout[-20000:]

    def part_sanitizer(self) -> None:
        found = self.results["sanitizer"] = {}
        for tool in ("memcheck", "racecheck"):
            if not shutil.which("compute-sanitizer"):
                found[tool] = "no compute-sanitizer here"
                continue
            try:
                done = self.run(
                    "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q",
                    "-p", "no:cacheprovider", "tests/test_cuda_kernels.py", "-k", SANITIZED, seconds=90,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                found[tool] = "did not end in its time"
                continue
            summary = [
                line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line
            ]
            found[tool] = {"status": done.returncode, "summary": summary[-1:] or done.stdout[-1000:]}

    def part_latency(self) -> None:
        program = self.build / "gpu_latency"
        made = self.run("nvcc", "-O3", "-std=c++17", "-arch=native", ROOT / "benchmarks/gpu_latency.cu", "-o", program)
        done = self.run(program) if not made.returncode else made
        self.results["latency"] = json.loads(done.stdout) if not done.returncode else {"failed": done.stdout[-2000:]}

    def part_bench(self) -> None:
        sys.path.insert(0, str(self.package))
        self.results["bench"] = rows = []
        latency = self.results.get("latency", {}).get("grid_flags_us", 1.2) * 1e-6
        cases = [(cell, number, shape) for shape in SHAPES for cell in GATES for number in NUMBERS]
        for cell, number, shape in cases:
            if self.seconds_left < 20:
                self.results["left_out"].append(f"bench from {cell} {number} {shape} on")
                break
            rows.append(measure(cell, number, shape, latency))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)


def measure(cell: str, number: str, shape: tuple[Any, ...], latency: float) -> dict[str, Any]:
    """Milliseconds of cuDNN and of every way to call the kernels, taking turns."""
    import torch

    T, B, I, H, L, bidirectional = shape  # noqa: E741
    dtype = getattr(torch, {"tf32": "float32"}.get(number, number))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = number == "tf32"
    torch.manual_seed(0)
    theirs = getattr(torch.nn, cell.upper())(I, H, L, bidirectional=bidirectional, device="cuda", dtype=dtype)
    x = torch.randn(T, B, I, device="cuda", dtype=dtype)
    dy = torch.randn(T, B, H * (1 + bidirectional), device="cuda", dtype=dtype)
    inference, training = Ours(cell, number, theirs, x, dy, False), Ours(cell, number, theirs, x, dy, True)
    leaf = x.clone().requires_grad_()

    def their_inference() -> Any:
        with torch.no_grad():
            return theirs(x)[0]

    def their_training() -> Any:
        theirs.zero_grad()
        leaf.grad = None
        y = theirs(leaf)[0]
        y.backward(dy)
        return y

    ways: dict[str, Callable[[], Any]] = {
        "cudnn_inference": their_inference,
        "inference": inference.forward,
        "inference_graph": captured(inference.forward),
        "cudnn_training": their_training,
        "training": training.both,
        "training_graph": captured(training.both),
    }
    scale = float(their_training().abs().max())
    row: dict[str, Any] = {
        "cell": cell, "dtype": number, "shape": list(shape[:5]), "bidirectional": bidirectional,
        "error": float((training.both() - their_training()).abs().max()) / scale,
        "error_dx": float((training.dx - leaf.grad).abs().max() / leaf.grad.abs().max()),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.monotonic() + 1.5
    while time.monotonic() < end or len(times["inference"]) < 3:
        for name, way in ways.items():
            times[name].append(milliseconds(way))
    for name, taken in times.items():
        row[name] = {"ms": statistics.median(taken), "least": min(taken), "most": max(taken), "runs": len(taken)}
    flops, size = 2 * GATES[cell] * H * H * B, dtype.itemsize
    step = max(flops / PEAK[number], GATES[cell] * H * H * size / L2_BANDWIDTH if H > 128 else 0)
    step += POINTWISE + (latency if H > 128 else 0)
    row["floor_inference_ms"] = 1e3 * L * T * (step + 2 * GATES[cell] * H * I * B / PEAK[number])
    return row


class Ours:
    """The kernels on PyTorch's memory."""

    def __init__(self, cell: str, number: str, layer: Any, x: Any, dy: Any, training: bool) -> None:
        import torch

        from fastrnn import _cuda

        self._cuda, self._torch, self._training, self._x, self._dy = _cuda, torch, training, x, dy
        self._T, self._B, _ = x.shape
        dtype = {"tf32": "float32"}.get(number, number)
        L, D = layer.num_layers, 1 + layer.bidirectional
        self._problem = _cuda.Problem(cell, dtype, layer.input_size, layer.hidden_size, 0, L, layer.bidirectional, True)
        self._options = _cuda.Options(None, None, 0.0, 0, number == "tf32")
        self._weights = [w.detach() for w in layer.parameters()]
        sizes = _cuda.sizes(self._problem, self._T, self._B, 0.0, training)
        self._memory = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in sizes]
        self.y, self.dx = torch.empty_like(dy), torch.empty_like(x)
        self._states = [x.new_empty(L * D, self._B, layer.hidden_size) for _ in range(4)]
        self._grads = [torch.empty_like(w) for w in self._weights]
        self._has_c = cell == "lstm"

    def forward(self) -> Any:
        h_n, c_n = self._states[:2]
        self._cuda.forward(
            self._problem, self._T, self._B, self._x.data_ptr(), None, None, [w.data_ptr() for w in self._weights],
            self._options, (self.y.data_ptr(), h_n.data_ptr(), c_n.data_ptr() if self._has_c else None),
            self._memory[0].data_ptr() if self._training else None, self._memory[1].data_ptr(), self._stream(),
        )  # fmt: skip
        return self.y

    def both(self) -> Any:
        self.forward()
        dh_0, dc_0 = self._states[2:]
        self._cuda.backward(
            self._problem, self._T, self._B, self._x.data_ptr(), self.y.data_ptr(),
            [w.data_ptr() for w in self._weights], self._options, self._dy.data_ptr(), None, None,
            (self.dx.data_ptr(), dh_0.data_ptr(), dc_0.data_ptr() if self._has_c else None),
            [g.data_ptr() for g in self._grads], self._memory[0].data_ptr(), self._memory[2].data_ptr(), self._stream(),
            False,
        )  # fmt: skip
        return self.y

    def _stream(self) -> int:
        return int(self._torch.cuda.current_stream().cuda_stream)


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same as one CUDA graph."""
    import torch

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def milliseconds(call: Callable[[], Any]) -> float:
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def describe() -> dict[str, Any]:
    """Device, driver and versions."""
    import torch

    def output(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    return {
        "device": torch.cuda.get_device_name(),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": output("nvcc", "--version").splitlines()[-1],
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
    }


def markdown(results: dict[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    yield f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, cuDNN {machine['cudnn']}, commit {machine['commit']}"
    yield ""
    for part in ("tests", "sanitizer", "latency", "left_out"):
        if results.get(part):
            shown = {k: v for k, v in results[part].items() if k != "output"} if part == "tests" else results[part]
            yield f"- {part}: {json.dumps(shown)}"
    if not results.get("bench"):
        return
    yield ""
    yield "Milliseconds; in brackets cuDNN's time divided by ours. The floor is that of inference."
    yield ""
    yield "| cell | dtype | T,B,I,H,L | cuDNN inference | ours | as a graph | floor | cuDNN training | ours | as a graph | error |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in results["bench"]:
        shape = ",".join(map(str, row["shape"])) + (" both directions" if row["bidirectional"] else "")
        cells = [row["cell"], row["dtype"], shape]
        for mode in ("inference", "training"):
            theirs = row[f"cudnn_{mode}"]["ms"]
            cells.append(f"{theirs:.3f}")
            cells += [f"{row[w]['ms']:.3f} ({theirs / row[w]['ms']:.2f})" for w in (mode, f"{mode}_graph")]
            if mode == "inference":
                cells.append(f"{row['floor_inference_ms']:.3f}")
        yield "| " + " | ".join([*cells, f"{row['error']:.1e}"]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=9, help="when to end (default: 9)")
    parser.add_argument("--build-dir", type=Path, help="kept, and built in again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        checks = Checks(options, options.build_dir or Path(temporary))
        checks.build.mkdir(parents=True, exist_ok=True)
        checks.results["machine"] = describe()
        for part in PARTS:
            if part not in wanted:
                continue
            try:
                getattr(checks, f"part_{part}")()
            except subprocess.TimeoutExpired:
                checks.results["left_out"].append(f"{part}: not ended in its time")
            if options.json:
                options.json.write_text(json.dumps(checks.results, indent=1) + "\n")
    table = "\n".join(markdown(checks.results))
    if options.markdown:
        options.markdown.write_text(table + "\n")
    print(table)
    return 0 if checks.results.get("tests", {}).get("passed", True) else 1


if __name__ == "__main__":
    sys.exit(main())
