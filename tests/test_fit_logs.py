"""What LanguageModel.fit writes and shows: records, logs, progress; and the texts in files that it reads."""

from __future__ import annotations

import csv
import errno
import math
import os
import sys
import threading
import tracemalloc
import zlib

import numpy as np
import pytest

from fastrnn.models import LanguageModel, checkpoint
from fastrnn.models import progress as progress_module
from fastrnn.models.training import Streams, Trainer, streams
from tiny_model import QUICK, STEPS, TEXT, Reporter, options_of, poison, tiny, weights_equal

# -- logs --------------------------------------------------------------------------------------------------------------


def test_gradient_norms_and_the_share_of_clipped_steps():
    model, norms = tiny(), []
    model.build(TEXT)
    compute = model.loss_and_grads

    def watched(*args, **kwargs):
        result = compute(*args, **kwargs)
        norms.append(math.sqrt(sum(float((g.astype("d") ** 2).sum()) for group in model.grads for g in group.values())))
        return result

    model.loss_and_grads = watched
    report = Reporter()
    history = model.fit(TEXT, epochs=2, clip=0.4, **QUICK | {"progress": report})
    assert len(norms) == 2 * STEPS
    for record, part in zip(history, (norms[:STEPS], norms[STEPS:]), strict=True):
        assert record["grad_norm"] == pytest.approx(np.mean(part), rel=1e-12)
        assert record["clipped"] == np.mean([norm > 0.4 for norm in part])
    assert 0 < sum(record["clipped"] for record in history) < 2
    for record, message in zip(history, report.messages, strict=True):
        assert f", clipped {record['clipped']:.0%}, " in message
    model.fit(TEXT, epochs=1, clip=None, **QUICK | {"progress": report})
    assert "clipped" not in report.messages[-1]


def test_csv_log(tmp_path):
    model = tiny()
    model.fit(TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    history = model.fit(TEXT, TEXT, epochs=3, checkpoint=tmp_path, resume=True, **QUICK)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["valid_loss"] == ""
    for row, record in zip(rows, history, strict=True):
        assert {name: float(value) for name, value in row.items() if value} == record
    assert set(rows[0]) == {
        "epoch", "steps", "lr", "loss", "perplexity", "grad_norm", "clipped", "tokens_per_second", "seconds",
        "valid_loss", "valid_perplexity",
    }  # fmt: skip


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, threads = tiny(), threading.active_count()
    model.fit(TEXT, TEXT, epochs=2, checkpoint=tmp_path, **QUICK)
    history = model.fit(TEXT, TEXT, epochs=4, checkpoint=tmp_path, resume=True, **QUICK)
    assert threading.active_count() == threads  # the writer's are gone
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(history[0]) - {"epoch", "steps"}
    for name in events.Tags()["scalars"]:
        got = [(event.step, event.value) for event in events.Scalars(name)]
        assert got == [(record["steps"], np.float32(record[name])) for record in history]
    assert len(os.listdir(tmp_path / "tensorboard")) == 2


def test_tensorboard_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    tiny().fit(TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    assert (tmp_path / "log.csv").exists()
    assert not (tmp_path / "tensorboard").exists()


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["open", "write", "flush"])
def test_a_run_goes_on_without_tensorboard_where_its_disk_is_full(tmp_path, monkeypatch, call):
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def fail(*args):
        raise full()

    class Events(record_writer.RecordWriter):
        def close(self):
            super().close()
            fail()

    monkeypatch.setattr(record_writer, "RecordWriter", Events)
    if call == "open":
        (tmp_path / "tensorboard").write_text("a file")
    else:
        monkeypatch.setattr(Events, call, fail)
    model, report = tiny(), Reporter()
    model.fit(TEXT, epochs=3, checkpoint=tmp_path, **QUICK | {"progress": report})
    told = [message for message in report.messages if "TensorBoard" in message]
    assert len(told) == 1
    assert told[0].startswith(f"the run goes on without events for TensorBoard in {tmp_path / 'tensorboard'}: [Errno")
    assert len(LanguageModel.load(tmp_path).history) == 3


def test_a_full_disk_leaves_the_old_log(tmp_path, monkeypatch):
    model = tiny()
    model.fit(TEXT, epochs=1, checkpoint=tmp_path, **QUICK)
    before = (tmp_path / "log.csv").read_bytes()
    write_file = checkpoint.write_file

    def fail(file):
        file.write(b"epoch")
        raise full()

    monkeypatch.setattr(
        checkpoint, "write_file", lambda path, save: write_file(path, fail if path.name == "log.csv" else save)
    )
    with pytest.raises(OSError, match=r"No space.*log\.csv"):
        model.fit(TEXT, epochs=2, resume=True, checkpoint=tmp_path, **QUICK)
    assert (tmp_path / "log.csv").read_bytes() == before
    monkeypatch.undo()
    model.fit(TEXT, epochs=3, resume=True, checkpoint=tmp_path, **QUICK)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_a_close_that_fails_does_not_hide_how_the_run_ended():
    class Broken(Reporter):
        def close(self):
            raise full()

    model = tiny()
    with pytest.raises(FloatingPointError, match="has loss nan"):
        model.fit(TEXT, epochs=2, **QUICK | {"progress": Broken(lambda done: poison(model))})


# -- progress ----------------------------------------------------------------------------------------------------------


def test_lines_tell_the_time_left(capsys, monkeypatch):
    times = iter([100.0, 101.0, 103.0, 111.0, 112.0, 121.0, 126.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(times))
    lines = progress_module.Lines(interval=5.0)
    lines.start(1000, "training")
    for done in (400, 401, 410, 411, 430, 430):
        lines.update(done, "x")
    shown = capsys.readouterr().err.splitlines()
    # A resumed run: 10 steps in 10 s, then 20 in 10 s, which count for 0.3 of the smoothed second for a step.
    assert shown == [
        "training: 410/1000 (41%)  x  ETA 0:09:50",
        f"training: 430/1000 (43%)  x  ETA 0:08:{round(570 * 0.85) - 480:02}",
        f"training: 430/1000 (43%)  x  ETA 0:08:{round(570 * 0.85) - 480:02}",
    ]


def test_lines_before_the_first_step_is_timed(capsys, monkeypatch):
    times = iter([100.0, 106.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(times))
    lines = progress_module.Lines(interval=5.0)
    lines.start(4, "training")
    lines.update(1, "x")
    assert capsys.readouterr().err == "training: 1/4 (25%)  x\n"


def test_the_bar_shows_a_message_as_it_is(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "40")
    rng = np.random.default_rng(0)
    printable = [chr(code) for code in range(32, 127)] + list("\nä→")
    texts = [
        "O :cat: my " + "x" * 90,
        "[bold]1.5[/] http://a/b 'c'  ",
        "",
        *map("".join, rng.choice(printable, (9, 200))),
    ]
    bar = progress_module.Bar()
    for text in texts:
        bar.message(text)
        assert capsys.readouterr().err == text + "\n"


# -- texts in files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "uint16"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_text_in_a_file_trains_as_in_memory(tmp_path, batch_size, dtype):
    one, other = tiny(), tiny()
    ids = one.build(TEXT).encode(TEXT)
    other.build(TEXT)
    ids.astype(dtype).tofile(tmp_path / "ids")
    stored = np.memmap(tmp_path / "ids", dtype, "r")
    data = [Streams(text, batch_size, 16) for text in (ids, stored)]
    trainers = [Trainer(model, each, options_of(), 2) for model, each in zip((one, other), data, strict=True)]
    for trainer, streamed in zip(trainers, data, strict=True):
        while trainer.epoch < 2:
            inputs, targets = streamed.batch(trainer.position)
            for array in (inputs, targets):
                assert array.dtype == np.int32
                assert array.flags.c_contiguous
                assert array.shape == (min(16, streamed.length - trainer.position), batch_size)
            start = trainer.position
            assert inputs[0, 0] == ids[start]
            assert targets[-1, -1] == ids[(batch_size - 1) * streamed.length + start + len(targets)]
            trainer.step(0.0)
    assert weights_equal(one, other)
    assert data[1].fingerprint == [len(ids), zlib.crc32(ids.astype(dtype).tobytes())]


def test_a_text_in_a_file_is_not_copied(tmp_path):
    np.random.default_rng(0).integers(1, 5, 2**20, dtype=np.int32).tofile(tmp_path / "ids")
    stored = np.memmap(tmp_path / "ids", np.int32, "r")
    for part in streams(stored, 32):
        assert np.shares_memory(part, stored)
    model = tiny()
    model.build(TEXT)
    tracemalloc.start()
    try:
        trainer = Trainer(model, Streams(stored, 32, 16), options_of(), 1)
        trainer.step(0.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < stored.nbytes / 4
