"""Builds fastrnn for the GPU of this machine, tests it there, and measures it beside PyTorch's cuDNN.

    python benchmarks/gpu_check.py [--only build,tests,...] [--json FILE] [--markdown FILE]

For a machine without network: needs nvcc, CMake, a C++ compiler, and in the Python that runs it NumPy, pybind11,
pytest, hypothesis and a PyTorch that sees the GPU; without CuPy the tests of layers on its arrays are left out.
Everything is built in a directory of its own, which --build-dir keeps. A part that fails or does not fit into --minutes
is said to and the others go on. The table comes last; the exit status is 1 if the build or a test failed, or the
sanitizer found an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("build", "tests", "latency", "bench", "sanitizer")
#: Seconds that each may take at most. What a part leaves is the later ones'.
SECONDS = {"build": 240, "tests": 120, "latency": 30, "bench": 200, "sanitizer": 60}
#: Small, and among them all that a kernel distinguishes; cuBLASLt's own kernels are not ours to check.
SANITIZED = "(T2 or past_a_rows or added_to) and not cublaslt"
TESTS = (
    "tests/test_cuda_kernels.py",
    "tests/test_cuda_cublaslt.py",
    "tests/test_torch_cuda.py",
    "tests/test_gpu_layers.py",
    "tests/test_gpu_libraries.py",
    "tests/test_gpu_errors.py",
)
FOUND = 9  # the sanitizer's status where it finds an error; any other is a tool that could not run, which is told
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *TESTS)


class Failed(Exception):
    """A part did not do what it should; the text says what was seen."""


class Checks:
    """One run of the script: what is asked for, what was found, when it must end."""

    def __init__(self, build: Path, minutes: float) -> None:
        self.build = build
        self.package = build / "package"
        self.deadline = time.monotonic() + 60 * minutes
        self.results: dict[str, Any] = {"failed": {}}
        toolkit = "/usr/local/cuda/bin"
        paths = [str(self.package), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{toolkit}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        self.environment.pop("FASTRNN_CUDA_EMULATED", None)

    def run(self, *command: str | Path, seconds: float, **environment: str) -> tuple[int | None, str]:
        """Status, None where the time was up, and output. No process that it started is left."""
        seconds = max(1.0, min(seconds, self.deadline - time.monotonic()))
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, env=self.environment | environment, stdout=output,
                stderr=subprocess.STDOUT, preexec_fn=os.setpgrp,
            )  # fmt: skip
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            return status, output.read()

    def part_build(self) -> None:
        import pybind11

        start = time.monotonic()
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=self.environment["PATH"]) else []
        for command in (
            ["cmake", "-S", ROOT, "-B", self.build, *generator, "-DFASTRNN_CUDA=ON", "-DFASTRNN_CUDA_ARCHS=native",
             f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"],
            ["cmake", "--build", self.build, "-j", str(os.cpu_count())],
        ):  # fmt: skip
            status, output = self.run(*command, seconds=SECONDS["build"])
            if status != 0:
                raise Failed(f"status {status}\n{output[-8000:]}")
        self.package.mkdir(exist_ok=True)
        shutil.copytree(ROOT / "python" / "fastrnn", self.package / "fastrnn", dirs_exist_ok=True)
        for module in [*self.build.glob("_core*.so"), *self.build.glob("csrc/cuda/_cuda*.so")]:
            shutil.copy(module, self.package / "fastrnn")
        see = (
            "import torch; from fastrnn import _cuda, config; assert torch.cuda.is_available(); "
            "print(_cuda.build); print(config.cuda_cublaslt())"
        )
        status, output = self.run(sys.executable, "-c", see, seconds=60)
        if status != 0:
            raise Failed(f"built, but not usable: {output[-2000:]}")
        built_for, library = output.strip().splitlines()[-2:]
        self.results["build"] = {
            "seconds": round(time.monotonic() - start, 1), "for": built_for, "cublaslt": library
        }  # fmt: skip

    def part_tests(self) -> None:
        self._need_build()
        status, output = self.run(sys.executable, *PYTEST, seconds=SECONDS["tests"])
        self.results["tests"] = {"status": status, "summary": output.strip().splitlines()[-1:]}
        # Nothing may be left out: without a device all tests would be.
        if status != 0 or " passed" not in output:
            raise Failed(output[-12000:])

    def part_latency(self) -> None:
        program = self.build / "gpu_latency"
        source = ROOT / "benchmarks" / "gpu_latency.cu"
        status, output = self.run("nvcc", "-O3", "-std=c++17", "-arch=native", source, "-o", program, seconds=120)
        if status == 0:
            status, output = self.run(program, seconds=SECONDS["latency"])
        if status != 0:
            raise Failed(f"status {status}: {output[-2000:]}")
        self.results["latency"] = json.loads(output)

    def part_bench(self) -> None:
        self._need_build()
        seconds = min(SECONDS["bench"], self.deadline - time.monotonic() - 30)
        latency = self.results.get("latency", {}).get("grid_flags_us", 1.2)
        status, output = self.run(
            sys.executable, ROOT / "benchmarks" / "gpu_bench.py", "--seconds", str(seconds), "--latency", str(latency),
            seconds=seconds + 25,
        )  # fmt: skip
        lines = output.splitlines()
        self.results["bench"] = [json.loads(line) for line in lines if line.startswith('{"cell"')]
        if status != 0:
            rest = "\n".join(line for line in lines if not line.startswith("{"))
            raise Failed(f"ended with status {status} after {len(self.results['bench'])} rows\n{rest[-4000:]}")

    def part_sanitizer(self) -> None:
        self._need_build()
        tool = shutil.which("compute-sanitizer", path=self.environment["PATH"])
        if tool is None:
            raise Failed("no compute-sanitizer here")
        found = self.results["sanitizer"] = {}
        for check in ("memcheck", "racecheck"):
            # Without torch's cache every array is an allocation of its own, beyond which an access shows.
            status, output = self.run(
                tool, "--tool", check, "--report-api-errors", "no", "--error-exitcode", str(FOUND), sys.executable,
                *PYTEST, "-k", SANITIZED, seconds=SECONDS["sanitizer"], PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            )  # fmt: skip
            summary = [line for line in output.splitlines() if "SUMMARY" in line or " passed" in line]
            found[check] = {"status": "time was up" if status is None else status, "summary": summary}
            if status not in (0, None):
                found[check]["output"] = output[-8000:]
            if status == FOUND:
                raise Failed(f"{check}: {output[-8000:]}")

    def is_built(self) -> bool:
        return bool(list((self.package / "fastrnn").glob("_cuda*.so")))

    def _need_build(self) -> None:
        if not self.is_built() or "build" in self.results["failed"]:
            raise Failed("nothing was built")


def describe() -> dict[str, Any]:
    """Device, driver and versions."""

    def output(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    found = {
        "driver": output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "nvcc": (output("nvcc", "--version").splitlines() or [""])[-1],
        "commit": output("git", "rev-parse", "--short", "HEAD"),
    }
    try:
        import torch

        found |= {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    except Exception as error:
        found["torch"] = f"{type(error).__name__}: {error}"
    return found


def markdown(results: dict[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    yield ""
    for part in ("build", "tests", "latency", "sanitizer"):
        if part in results:
            yield f"- {part}: {json.dumps(results[part])[:2000]}"
    for part, reason in results["failed"].items():
        yield f"- FAILED {part}: {reason[:3000]}"
    rows = results.get("bench", [])
    if rows:
        yield ""
        yield (
            "Milliseconds; in brackets cuDNN's time divided by ours, behind the floor of inference our time as a graph "
            "divided by it. General path, own products: as a graph, where another path or cuBLASLt was chosen."
        )
        yield ""
        mode = "layer|kernels|as a graph|general path|own products"
        header = f"cell|dtype|T,B,I,H,L|paths|cuDNN inference|{mode}|floor|cuDNN training|{mode}|largest error"
        yield "|" + header + "|"
        yield "|---" * len(header.split("|")) + "|"
    for row in rows:
        shape = ",".join(map(str, row["shape"])) + (" both directions" if row["bidirectional"] else "")
        shape += " packed" if row["packed"] else ""
        cells = [row["cell"], row["dtype"], shape, ", ".join(row.get("paths", ["-"]))]
        if "failed" in row or "left_out" in row:
            yield "| " + " | ".join([*cells, row.get("failed", "left out")[:300]]) + " |"
            continue
        for mode in ("inference", "training"):
            theirs = row[f"cudnn_{mode}"]["ms"]
            cells.append(f"{theirs:.3f}")
            ways = f"layer_{mode}", mode, f"{mode}_graph", f"general_{mode}_graph", f"own_products_{mode}_graph"
            for way in ways:
                cells.append(f"{row[way]['ms']:.3f} ({theirs / row[way]['ms']:.2f})" if way in row else "-")
            if mode == "inference":
                floor = row.get("floor_inference_ms")
                cells.append(f"{floor:.3f} ({row['inference_graph']['ms'] / floor:.1f})" if floor else "-")
        yield "| " + " | ".join([*cells, f"{max(row['error'].values()):.1e}"]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=9, help="when to end (default: 9)")
    parser.add_argument("--build-dir", type=Path, help="kept, and built in again")
    parser.add_argument("--commit", help="what is checked, where git cannot tell")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    wanted = set(options.only.split(","))
    if unknown := wanted - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        build = (options.build_dir or Path(temporary)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        checks = Checks(build, options.minutes)
        checks.results["machine"] = describe() | ({"commit": options.commit} if options.commit else {})
        if wanted & {"tests", "bench", "sanitizer"} and not checks.is_built():
            wanted.add("build")
        for part in PARTS:
            if part not in wanted:
                continue
            print(f"gpu_check: {part}", file=sys.stderr, flush=True)
            try:
                getattr(checks, f"part_{part}")()
            except Failed as failed:
                checks.results["failed"][part] = str(failed)
            except Exception:
                checks.results["failed"][part] = traceback.format_exc()
            if options.json:
                options.json.write_text(json.dumps(checks.results, indent=1) + "\n")
    table = "\n".join(markdown(checks.results))
    if options.markdown:
        options.markdown.write_text(table + "\n")
    print(table)
    found = any(check["status"] == FOUND for check in checks.results.get("sanitizer", {}).values())
    return 1 if found or {"build", "tests"} & checks.results["failed"].keys() else 0


if __name__ == "__main__":
    sys.exit(main())
