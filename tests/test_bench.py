"""``fastrnn bench``: its arithmetic, its processes, its tables."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastrnn import _core, cli, output
from fastrnn.bench import harness, machine, peers, report, shapes, worker

TINY = ("--seconds", "0.01", "--threads", "1")


def hide(monkeypatch, *modules):
    """For the parent they are not installed, so that no worker is started for what needs them."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def limits(monkeypatch):
    """A machine of 2 TFLOP/s, 1 TB/s and 0.2 us."""
    monkeypatch.setattr(_core, "peak_flops", lambda dtype, threads, seconds: 2e12, raising=False)
    monkeypatch.setattr(_core, "read_bandwidth", lambda size, threads, seconds: 1e12, raising=False)
    monkeypatch.setattr(_core, "round_trip", lambda seconds: 2e-7, raising=False)


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic
# ---------------------------------------------------------------------------------------------------------------------


def test_flops():
    shape = shapes.Shape(5, 3, 8, 16, 2)
    per_unit = (8 + 16) + (16 + 16)  # columns of both layers
    assert shapes.flops("rnn", shape, "infer") == 2 * 5 * 3 * 16 * per_unit
    assert shapes.flops("gru", shape, "infer") == 3 * 2 * 5 * 3 * 16 * per_unit
    assert shapes.flops("lstm", shape, "train") == 3 * 4 * 2 * 5 * 3 * 16 * per_unit


def test_ideal_is_the_slower_of_arithmetic_and_reading():
    shape = shapes.Shape(5, 3, 8, 16, 2)
    flops, read = shapes.flops("lstm", shape, "infer"), 5 * 2 * 4 * 16 * 16 * 4  # T, L, G, H, H, bytes
    assert shapes.ideal_seconds("lstm", shape, "infer", 1e9, 1e30) == pytest.approx(flops / 1e9)
    assert shapes.ideal_seconds("lstm", shape, "infer", 1e30, 1e9) == pytest.approx(read / 1e9)
    assert shapes.ideal_seconds("lstm", shape, "train", 1e9, 1e30) == pytest.approx(3 * flops / 1e9)
    assert shapes.ideal_seconds("lstm", shape, "train", 1e30, 1e9) == pytest.approx(2 * read / 1e9)
    assert shapes.slice_bytes("lstm", shape, 3) == -(-4 * 16 * 16 * 4 // 3)  # one layer's, shared by three


def test_a_single_step_reads_all_weights():
    shape = shapes.Shape(1, 3, 8, 16, 2)
    weights = 3 * 16 * ((8 + 16) + (16 + 16)) * 4
    assert shapes.ideal_seconds("gru", shape, "infer", 1e30, 1e9) == pytest.approx(weights / 1e9)
    assert shapes.slice_bytes("gru", shape, 2) == weights // 2


def test_median_and_spread():
    times = harness.Times()
    for each in ([3e-3], [1e-3, 1e-3, 9e-3], [2e-3], [4e-3], [5e-3, 5e-3]):
        times.add(each)
    expected = {"ms": 3.0, "spread": (4 - 2) / 3, "rounds": 5, "calls": 8}
    assert times.summary() == pytest.approx(expected)
    assert harness.spread([1.0]) == 0


def test_relative_error():
    want = {"y": np.array([1.0, -4.0]), "dx": np.array([0.5]), "zero": np.zeros(2)}
    got = {"y": np.array([1.0, -3.0]), "dx": np.array([0.4]), "zero": np.array([0, 0.125]), "more": np.ones(1)}
    assert harness.relative_error(got, want) == pytest.approx(0.25)
    assert np.isnan(harness.relative_error(got | {"dx": np.array([np.nan])}, want))
    with pytest.raises(harness.PeerError, match="dx is missing among its results"):
        harness.relative_error({"y": got["y"]}, want)
    with pytest.raises(harness.PeerError, match=r"dx has shape \(2,\) in the place of \(1,\)"):
        harness.relative_error(got | {"dx": np.ones(2)}, want)


def test_time_calls(monkeypatch):
    now = [0.0]  # a clock that only calls and pauses advance, in powers of two, whose sums are exact

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(worker.time, "sleep", wait)
    calls = []
    assert worker.time_calls(lambda: calls.append(1), 0.0) == [0.0]
    assert len(calls) == 2  # the first is not timed
    assert worker.time_calls(lambda: wait(0.25), 1.0) == [0.25] * 4
    assert worker.time_calls(lambda: wait(0.25), 1.0, pause=0.25) == [0.25] * 2  # pauses are not timed
    assert worker.time_calls(lambda: wait(4.0), 1.0) == [4.0]


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one line, status 2, and no process
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shape", "1,2,3"], "argument --shape: must be five integers >= 1 as T,B,I,H,L, got '1,2,3'"),
        (["--shape", "1,2,3,4,0"], "argument --shape: must be five integers >= 1 as T,B,I,H,L, got '1,2,3,4,0'"),
        (["--shape", "1,2,3,4,x"], "argument --shape: must be five integers >= 1 as T,B,I,H,L, got '1,2,3,4,x'"),
        (["--cell", "lstm,elman"], "argument --cell: must be some of lstm,gru,rnn, got 'lstm,elman'"),
        (["--mode", ""], "argument --mode: must be some of infer,train, got ''"),
        (["--threads", "0"], "argument --threads: must be an integer from 1 to 1024, got '0'"),
        (["--threads", "1025"], "argument --threads: must be an integer from 1 to 1024, got '1025'"),
        (["--threads", "two"], "argument --threads: "),
        (["--seconds", "0"], "argument --seconds: must be a number > 0, got '0'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--device", "cuda"], "bench: device 'cuda' is not available: "),
        (["--json", "no/such/folder/file.json"], "[Errno 2] No such file or directory: 'no/such/folder/file.json'"),
    ],
)
def test_bad_arguments(args, message, monkeypatch, capsys):
    def start(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(harness, "Worker", start)
    try:
        status = cli.main(["bench", *args])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith(("fastrnn bench: " if "argument" in message else "fastrnn: ") + message)
    assert err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------------------------------


def test_beside_torch(limits, monkeypatch, capsys, tmp_path):
    """One step of two layers: streams, pauses, several processes of torch, and the tables made of the JSON."""
    pytest.importorskip("torch")
    hide(monkeypatch, "onnx")
    monkeypatch.setattr(peers.Torch, "processes", 2)  # each takes seconds to load
    monkeypatch.setattr(peers.Fastrnn, "processes", 2)
    path = tmp_path / "run.json"
    assert cli.main(["bench", "--cell", "lstm", "--shape", "1,2,3,5,2", "--json", str(path), *TINY]) == 0
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if "failed" in line] == []
    assert "left out, as modules are not installed: onnxruntime (onnx" in err
    assert "1/1: lstm 1,2,3,5,2" in err

    document = report.read_json(path)
    assert document["machine"].keys() == {"cpu", "cores", "isa", "os", "python"}
    assert document["versions"].keys() == {"fastrnn", "numpy", "torch"}
    assert document["threads"] == 1
    assert document["seconds"] == 0.01
    assert [row["mode"] for row in document["rows"]] == ["infer", "train"]
    for row in document["rows"]:
        assert row["checked_against"] == "reference"
        assert row["limits"] == {"peak_flops": 2e12, "read_bandwidth": 1e12, "slice_bytes": 1440, "round_trip": None}
        assert row["peers"].keys() == {"fastrnn", "torch", "numpy"}
        for entry in row["peers"].values():
            assert entry["rounds"] >= 5
            assert entry["calls"] >= entry["rounds"]
            assert 0 < entry["error"] < 1e-5
        for name in ("fastrnn", "torch"):
            processes = row["peers"][name]["processes"]
            assert len(processes) == 2
            assert row["peers"][name]["ms"] == min(processes)
    assert document["rows"][0]["ideal_ms"] == pytest.approx(1440e-9)
    assert document["rows"][0]["paused"].keys() == {"fastrnn", "torch"}
    assert "paused" not in document["rows"][1]

    report.show(document)
    assert capsys.readouterr().out == out
    header, *lines = output.as_text(report.main_table(document)).splitlines()
    columns = "T,B,I,H,L cell mode fastrnn ms torch ms ratio best other peer, ms, ratio x ideal error"
    assert " ".join(header.split()) == columns
    assert [line.split()[:3] for line in lines] == [["1,2,3,5,2", "lstm", mode] for mode in ("infer", "train")]


def test_a_peer_that_dies(limits, monkeypatch, capsys):
    """Its process is gone in the second round: said, written, and the others go on."""
    hide(monkeypatch, "torch", "onnx")
    request, turns = harness.Worker.request, []

    def kill_in_second_round(self, do, **arguments):
        if do == "time" and self.name == "numpy":
            turns.append(1)
            if len(turns) == 2:
                self._process.kill()
                self._process.wait()
        return request(self, do, **arguments)

    monkeypatch.setattr(harness.Worker, "request", kill_in_second_round)
    lines, kept = [], []
    monkeypatch.setattr(harness, "BUSY_ROUND_TRIP", 1e-7)
    settings = harness.Settings(["gru"], [shapes.Shape(3, 2, 4, 5, 1)], ["train", "infer"], 2, 0.01)
    document = harness.run(settings, lines.append, lambda document: kept.append(json.dumps(document)))
    assert any(line.startswith("numpy-1 failed (gru 3,2,4,5,1): its process died of signal 9") for line in lines)
    for row in document["rows"]:
        assert row["peers"]["numpy"]["failed"].startswith("its process died")
        assert row["peers"]["fastrnn"]["rounds"] >= 5
        assert row["limits"]["round_trip"] == 2e-7
    assert "gru 3,2,4,5,1 infer: other programs were using the cores, the times mean little" in lines
    report.show(json.loads(kept[-1]))
    assert [len(json.loads(document)["rows"]) for document in kept] == [1, 2]  # after each mode
    assert "3,2,4,5,1  gru   train" in capsys.readouterr().out


def test_a_library_that_cannot_be_loaded(limits, monkeypatch, tmp_path):
    """It also prints, which must not mix with the answers."""
    (tmp_path / "torch.py").write_text("import sys\nprint('hello')\nsys.exit('no such instruction')\n")
    monkeypatch.syspath_prepend(tmp_path)
    hide(monkeypatch, "onnx")
    monkeypatch.setattr(harness, "REFERENCE_FLOPS", 0)
    lines = []
    settings = harness.Settings(["rnn"], [shapes.Shape(3, 2, 4, 5, 1)], ["infer"], 1, 0.01)
    (row,) = harness.run(settings, lines.append, lambda _: None)["rows"]
    assert "torch-3 failed (rnn 3,2,4,5,1): its process ended with status 1: no such instruction" in lines
    assert row["peers"]["torch"] == {"failed": "its process ended with status 1: no such instruction"}
    # Without reference and torch, fastrnn is what the others are compared with.
    assert row["checked_against"] == "fastrnn"
    assert row["peers"]["fastrnn"]["error"] is None
    assert row["peers"]["numpy"]["error"] < 1e-5
    assert report.main_table({"rows": [row]})[1][0][4:6] == ["failed", "-"]


def test_wrong_results_are_a_failure(limits, monkeypatch):
    hide(monkeypatch, "torch", "onnx")
    monkeypatch.setattr(harness, "LARGEST_ERROR", -1.0)
    monkeypatch.setitem(peers.PEERS, "numpy", type("Numpy", (peers.Numpy,), {"most_flops": 1}))
    settings = harness.Settings(["rnn"], [shapes.Shape(3, 2, 4, 5, 1)], ["infer"], 1, 0.01)
    (row,) = harness.run(settings, lambda _: None, lambda _: None)["rows"]
    assert row["peers"]["fastrnn"]["failed"].startswith("its results differ from those of reference by ")
    assert row["peers"]["numpy"] is None  # too large a row
    assert report.main_table({"rows": [row]})[1][0][3:] == ["failed", "-", "-", "-", "-", "-"]


def test_status_where_fastrnn_fails(limits, monkeypatch, capsys):
    hide(monkeypatch, "torch", "onnx")
    monkeypatch.setattr(harness, "LARGEST_ERROR", -1.0)
    assert cli.main(["bench", "--cell", "rnn", "--shape", "1,2,4,5,1", "--mode", "infer", *TINY]) == 2
    out, err = capsys.readouterr()
    assert "1,2,4,5,1  rnn   infer  failed" in out
    last = err.splitlines()[-1]
    assert last.startswith("fastrnn: bench: fastrnn failed: rnn 1,2,4,5,1 infer: its results differ from those of")
    assert last.endswith(" (and 1 more)")  # the row of single steps after a pause


def test_failures(made):
    assert report.failures(made) == []
    made["rows"][0]["paused"]["fastrnn"] = {"failed": "gone"}
    made["rows"][1]["peers"]["torch"] = {"failed": "does not matter"}
    assert report.failures(made) == ["gru 1,1,8,8,1 paused: gone"]


def test_ctrl_c_keeps_the_rows_so_far(limits, monkeypatch, capsys, tmp_path):
    hide(monkeypatch, "torch", "onnx")
    measure = harness._Row.measure

    def interrupted(self, mode):
        if mode == "train":
            raise KeyboardInterrupt
        return measure(self, mode)

    monkeypatch.setattr(harness._Row, "measure", interrupted)
    path = tmp_path / "run.json"
    path.write_text("of another run")
    assert cli.main(["bench", "--cell", "rnn", "--shape", "3,2,4,5,1", "--json", str(path), *TINY]) == 130
    assert [row["mode"] for row in report.read_json(path)["rows"]] == ["infer"]
    assert "3,2,4,5,1  rnn   infer" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("print('{\"times', end='')", "its process ended with status 3"),
        ("print('{\"times', end=''); sys.stdout.flush(); os.kill(os.getpid(), 9)", "its process died of signal 9"),
        ("print('hello'); sys.stdout.flush(); time.sleep(60)", "its process answered 'hello'"),
        ("print('[1]'); sys.stdout.flush(); time.sleep(60)", r"its process answered '\[1\]'"),
    ],
)
def test_a_worker_that_answers_badly(answer, message, monkeypatch, tmp_path):
    program = f"import os, sys, time; input(); {answer}; sys.exit(3)"
    monkeypatch.setattr(harness, "_COMMAND", (sys.executable, "-c", program))
    process = harness.Worker("numpy", 1, 1, tmp_path)
    try:
        with pytest.raises(harness.PeerError, match=f"^{message}$"):
            process.request("time")
    finally:
        process.close()
    assert process._process.poll() is not None


def test_workers_see_the_parents_modules_from_elsewhere(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the folder of the user')")
    (tmp_path / "here" / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("here")
    program = "import json, os; input(); import mine; print(json.dumps({'mine': mine.__file__, 'cwd': os.getcwd()}))"
    monkeypatch.setattr(harness, "_COMMAND", (sys.executable, "-c", program))
    process = harness.Worker("numpy", 1, 1, tmp_path / "away")
    try:
        answer = process.request("time")
    finally:
        process.close()
    assert Path(answer["mine"]).samefile(tmp_path / "here" / "mine.py")
    assert Path(answer["cwd"]).samefile(tmp_path / "away")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["INT", "TERM", "HUP"],
)
def test_a_signal_ends_stopped_workers(number, status, tmp_path):
    hidden = "import sys; sys.modules.update(torch=None, onnx=None); from fastrnn.cli import main; sys.exit(main())"
    args = ["--cell", "rnn", "--shape", "3,2,4,5,1", "--threads", "1", "--seconds", "60"]
    command = [sys.executable, "-c", hidden, "bench", *args]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # it may be ignored here, as under nohup
    )  # fmt: skip
    end = time.monotonic() + 60
    while not any(state == "T" for _, state in children(process.pid)) and time.monotonic() < end:
        time.sleep(0.02)
    workers = [pid for pid, _ in children(process.pid)]
    for patience in (30, 60):  # the interpreter loses what is raised while it runs a destructor: then ask again
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=patience)
            break
    assert process.returncode == status
    assert len(workers) == peers.Fastrnn.processes + 1  # and numpy
    assert out == ""
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert list(tmp_path.iterdir()) == []


def children(parent):
    """(pid, state) of the processes that this one has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):  # it has just ended
            continue
        if int(ppid) == parent:
            found.append((int(stat.parent.name), state))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", shapes.CELLS)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.filterwarnings("default")  # theirs
def test_onnx_models_are_the_same_layers(name, cell):
    for module in peers.PEERS[name].needs:
        pytest.importorskip(module)
    shape = shapes.Shape(4, 3, 5, 6, 2)
    data = harness.make_data(cell, shape)
    results = peers.PEERS[name](cell, shape, data, 1).results("infer")
    expected = peers.reference_results(shapes.CELLS[cell], data, 2, np.float64, "infer")
    assert harness.relative_error(results, expected) < 1e-5


def test_commit_only_of_the_checkout_with_the_package(monkeypatch, tmp_path):
    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *args], check=True, capture_output=True)

    package = tmp_path / "python" / "fastrnn" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    monkeypatch.setattr(machine, "_PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in [name for name in os.environ if name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")]:
        monkeypatch.delenv(name)
    assert machine.commit() is None
    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("no git")
    git("commit", "--allow-empty", "-m", "of something else")
    assert machine.commit() is None  # as in an environment inside of a checkout
    git("add", "python")
    git("commit", "-m", "the package")
    commit = machine.commit()
    assert commit
    assert commit.isalnum()
    package.write_text("1\n")
    assert machine.commit() == f"{commit}+changes"


def test_limits_are_medians_without_zeros(monkeypatch):
    bandwidths = iter([0.0, 3e9, 1e9, 2e9])
    monkeypatch.setattr(_core, "peak_flops", lambda dtype, threads, seconds: 0.0)
    monkeypatch.setattr(_core, "read_bandwidth", lambda size, threads, seconds: next(bandwidths))
    limits = machine.Limits(1, 64)
    for _ in range(4):
        limits.measure()
    expected = {"peak_flops": None, "read_bandwidth": 2e9, "slice_bytes": 64, "round_trip": None}
    assert limits.summary() == expected


def test_json_is_replaced_at_once(made, monkeypatch, tmp_path):
    path, link = tmp_path / "run.json", tmp_path / "link.json"
    path.write_text("old")
    link.symlink_to(path)
    output.check_writable(path)
    assert path.read_text() == "old"
    output.write_json(link, made)
    assert link.is_symlink()
    assert report.read_json(path) == made
    output.write_json(os.devnull, made)
    assert not Path(os.devnull).is_file()
    with pytest.raises(OSError, match="directory"):
        output.check_writable(tmp_path)
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match=r"No space left: '.*run.json'"):
        output.write_json(path, {})
    assert report.read_json(path) == made
    assert set(tmp_path.iterdir()) == {path, link}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1400, "1400"), (12345.6, "12300"), (999.6, "1000"), (1, "1.00"), (0.05, "0.0500"), (9.999, "10.0"), (0, "0.00")],
)
def test_digits(value, text):
    assert report._digits(value) == text


@pytest.fixture
def made():
    """A run of two rows, made up."""

    def entry(ms, **more):
        return {"ms": ms, "spread": 0.02, "rounds": 5, "calls": 50, "error": 2e-7, **more}

    limits = {"peak_flops": 2e12, "read_bandwidth": 1e12, "slice_bytes": 64, "round_trip": 2e-7}
    rest = {"checked_against": "reference", "ideal_ms": 0.5, "limits": limits}
    everyone = {"fastrnn": entry(1.0), "torch": entry(2.5), "onnxruntime": entry(1.5), "openvino": entry(0.5)}
    infer = {"cell": "gru", "shape": [1, 1, 8, 8, 1], "mode": "infer", "peers": everyone | {"numpy": None}} | rest
    train = {"cell": "gru", "shape": [1, 1, 8, 8, 1], "mode": "train", "peers": {"fastrnn": entry(4.0)}} | rest
    infer["paused"] = {"fastrnn": entry(0.1), "torch": entry(0.4)}
    about = {"cpu": "Some CPU", "cores": 4, "isa": "avx2", "os": "Linux x86_64", "python": "3.12.0"}
    versions = {"fastrnn": "0.1.0", "torch": "2.13.0"}
    return {"machine": about, "versions": versions, "commit": "abc", "threads": 2, "rows": [infer, train]}


def test_tables(made):
    assert report.main_table(made)[1] == [
        ["1,1,8,8,1", "gru", "infer", "1.00 ± 2%", "2.50 ± 2%", "2.50", "openvino 0.500, 0.50", "2.00", "2e-07"],
        ["1,1,8,8,1", "gru", "train", "4.00 ± 2%", "-", "-", "-", "8.00", "2e-07"],
    ]
    assert report.paused_table(made)[1] == [["1,1,8,8,1", "gru", "0.100 ± 2%", "0.400 ± 2%", "4.00"]]
    assert report.summary_table(made) == (["T,B,I,H,L", "GRU infer", "GRU train"], [["1,1,8,8,1", "2.50", "-"]])
    assert report.summary_table(made | {"rows": made["rows"][1:]}) == ([], [])
    assert report.describe(made) == (
        "Some CPU, 2 of 4 cores, avx2, Linux x86_64, Python 3.12.0; fastrnn 0.1.0 (abc), torch 2.13.0; "
        "peak 2000 GFLOP/s; round trip between two threads 0.200 us"
    )


def test_memory_tables(table):
    peaks = [
        {"cell": cell, "shape": shape, "fastrnn": 3 << 20, "torch": 4 << 20}
        for shape in ("1,2,3,4,1", "5,6,7,8,2")
        for cell in shapes.CELLS
    ]
    made = table.make_memory_tables({"peaks": peaks, "growth": [5 << 20, 5 << 19]})
    lines = made["peaks"].splitlines()
    assert [line.count("|") for line in lines] == [5] * 4
    assert lines[3] == "| 5,6,7,8,2 | 3.0, 4.0, 0.75 | 3.0, 4.0, 0.75 | 3.0, 4.0, 0.75 |"
    assert made["growth"] == "5.0, 2.5"


def test_profile_tables(table):
    shape = {"symbols": 33278, "cell": "gru", "hidden": 8, "layers": 2, "batch": 3, "bptt": 4, "optimizer": "sgd"}
    rows = {name: shape | {"shares": {"loss": loss, "rest": 1 - loss}} for name, loss in (("a", 0.75), ("b", 0.5))}
    assert table.make_profile_tables({"profile": rows})["shares"].splitlines() == [
        "| model | loss | rest |",
        "| --- | --- | --- |",
        "| 2 x 8 GRU, 33,278 symbols, batch 3, 4 steps, sgd | 75.0% | 25.0% |",
        "| 2 x 8 GRU, 33,278 symbols, batch 3, 4 steps, sgd | 50.0% | 50.0% |",
    ]


def test_ladder_tables(table):
    rung = {
        "name": "rnn", "valid_perplexity": 12.34, "test_perplexity": None, "parameters": 5678, "bytes": 9 << 20,
        "tokens_per_second": 1234.5, "seconds": 90.0,
    }  # fmt: skip
    document = {"rungs": [rung], "orders": [{"order": 1, "entries": 1234, "bytes": 5 << 20, "unseen": 0.25}]}
    tables = table.make_ladder_tables(document)
    assert tables["rungs"].splitlines()[2] == "| rnn | 12.3 | - | 5,678 | 9.4 | 1,234 | 1.5 |"
    assert tables["orders"].splitlines()[2] == "| 1 | 1,234 | 5.2 | 25.0% |"
    document["rungs"] = [rung | {"threads": 2, "commit": None}]
    lines = table.make_ladder_tables(document)["rungs"].splitlines()
    assert lines[0].endswith(" minutes | threads | commit |")
    assert lines[2].endswith(" 1.5 | 2 | - |")


def test_tables_in_a_readme(table, made, run_main, tmp_path):
    path, readme = tmp_path / "two.json", tmp_path / "README.md"
    output.write_json(path, made)
    assert report.read_json(path) == made

    def run(*args):
        return run_main(table, path, *args)

    train = output.as_markdown(report.main_table(made, "train"))
    status, out, _ = run()
    assert status == 0
    assert train in out
    other = "<!-- table: other/train -->\nstays\n<!-- end -->\n"
    readme.write_text(f"a\n<!-- table: two/train -->\nold\n<!-- end -->\nb\n{other}")
    for _ in range(2):  # the second time changes nothing
        assert run("--write", readme) == (0, "", "")
        assert readme.read_text() == f"a\n<!-- table: two/train -->\n{train}\n<!-- end -->\nb\n{other}"
    for text, message in [
        (other, "there must be a line '<!-- table: two/NAME -->', got none"),
        ("<!-- table: two/train -->\n", "each of the places two/train must have an end"),
        (
            "<!-- table: two/all -->\n<!-- end -->\n",
            "tables must be some of machine, infer, train, paused, summary, got all",
        ),
    ]:
        readme.write_text(text)
        status, _, err = run("--write", readme)
        assert status == 2
        assert message in err
        assert readme.read_text() == text
    path.write_text("[]")
    assert run()[0] == 2
