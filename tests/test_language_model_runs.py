"""LanguageModel: runs that go on where they stopped, saved models, progress."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn.models import LanguageModel, checkpoint, safetensors
from fastrnn.models import progress as progress_module
from fastrnn.models.schedules import Options
from fastrnn.models.training import Streams, Trainer
from model_files import edit
from tiny_model import QUICK, TEXT, tiny, tiny_trained, weights_equal


@pytest.fixture(scope="module")
def trained() -> LanguageModel:
    return tiny_trained()


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "lr": 0.5, "momentum": 0.9, "schedule": "cosine"}])
def test_resume_is_exact(tmp_path, optimizer):
    options = QUICK | optimizer

    class Stop:
        def start(self, total, title):
            assert total == 32

        def update(self, done, figures):
            if done == 19:  # in the middle of the third epoch: resumes at its start
                raise KeyboardInterrupt

        def message(self, text):
            pass

        def close(self):
            self.closed = True

    whole = tiny(layers=2, dropout=0.2)
    expected = whole.fit(TEXT, epochs=4, **options)
    stopped, stop = tiny(layers=2, dropout=0.2), Stop()
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(TEXT, epochs=4, checkpoint=tmp_path, **options | {"progress": stop})
    assert stop.closed
    resumed = LanguageModel.load(tmp_path)
    history = resumed.fit(TEXT, epochs=4, resume=True, **options)
    assert weights_equal(resumed, whole)
    assert [record["loss"] for record in history] == [record["loss"] for record in expected]
    assert resumed.fit(TEXT, epochs=4, resume=True, **options) == history  # nothing is left to do


def test_resume_within_an_epoch_is_exact(tmp_path):
    def trainer(model):
        return Trainer(model, Streams(model.vocabulary.encode(TEXT), 4, 16), Options.checked("t"), epochs=2)

    for cell in ("lstm", "gru"):
        model = tiny(cell=cell, layers=2, dropout=0.3)
        model.build(TEXT)
        run = trainer(model)
        for _ in range(5):
            run.step(0.0)
        model._training = run.state()
        model.save(tmp_path)
        other = LanguageModel.load(tmp_path)
        resumed = trainer(other)
        resumed.restore("t", other._training)
        for _ in range(6):
            assert run.step(0.0) == resumed.step(0.0)
        assert weights_equal(model, other)
        assert run.nats == resumed.nats
        assert run.epoch == resumed.epoch == 1


def test_resume_refuses_another_run(trained, tmp_path):
    trained.save(tmp_path)

    def resume(text=TEXT, epochs=6, **options):
        LanguageModel.load(tmp_path).fit(text, epochs=epochs, resume=True, **QUICK | options)

    with pytest.raises(ValueError, match=r"LanguageModel\.fit: resume needs the same lr=0.02, got 0.01"):
        resume(lr=0.01)
    with pytest.raises(ValueError, match="resume needs the same batch_size=4, got 5"):
        resume(batch_size=5)
    with pytest.raises(ValueError, match=r"resume needs the same train text: 456 tokens, got others"):
        resume(text=TEXT[::-1])
    cosine = tiny()
    cosine.fit(TEXT, epochs=1, schedule="cosine", **QUICK)
    with pytest.raises(ValueError, match="resume needs the same epochs=1 with schedule='cosine', got 2"):
        cosine.fit(TEXT, epochs=2, schedule="cosine", resume=True, **QUICK)
    trained.save(tmp_path, training=False)
    with pytest.raises(ValueError, match="resume needs a model with training state"):
        resume()
    with pytest.raises(ValueError, match="resume needs a model with training state"):
        tiny().fit(TEXT, resume=True, **QUICK)


# -- interrupted runs --------------------------------------------------------------------------------------------------


class _StopAt:
    """A reporter that interrupts the run after so many steps."""

    def __init__(self, step):
        self._step = step

    def start(self, total, title):
        pass

    def update(self, done, figures):
        if done == self._step:
            raise KeyboardInterrupt

    def message(self, text):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("step", [1, 7, 10])
def test_a_run_interrupted_between_steps_goes_on_as_if_it_had_not_been(step):
    whole, model = tiny(layers=2, dropout=0.3), tiny(layers=2, dropout=0.3)
    whole.fit(TEXT, epochs=2, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXT, epochs=2, **QUICK | {"progress": _StopAt(step)})
    model.fit(TEXT, epochs=2, resume=True, **QUICK)
    assert weights_equal(model, whole)


def test_an_argument_that_is_refused_leaves_the_training_state():
    text = "hello world " * 10
    model = LanguageModel(embedding=4, hidden=5, seed=0)
    model.fit(text, epochs=1, batch_size=2, bptt=8, progress=False)
    with pytest.raises(TypeError, match="progress"):
        model.fit(text, epochs=2, batch_size=2, bptt=8, progress=3)
    model.fit(text, epochs=2, batch_size=2, bptt=8, progress=False, resume=True)


# -- files -------------------------------------------------------------------------------------------------------------


def test_save_and_load_to_the_bit(trained, tmp_path):
    folder = tmp_path / "new" / "model"
    trained.save(folder)
    trained.save(folder)
    loaded = LanguageModel.load(folder)
    assert weights_equal(trained, loaded)
    assert loaded.config == trained.config
    assert loaded.vocabulary == trained.vocabulary
    assert loaded.history == trained.history
    assert np.array_equal(loaded.score(TEXT), trained.score(TEXT))
    assert loaded.generate("he", 20, seed=1) == trained.generate("he", 20, seed=1)
    names = sorted(os.listdir(folder))  # one archive of each kind: old ones are gone
    assert [name.split("-")[0] for name in names] == ["model.json", "training", "weights"]
    trained.save(folder, training=False)
    assert len(os.listdir(folder)) == 2
    (weights,) = folder.glob("weights-*.safetensors")
    with weights.open("rb") as file:
        assert safetensors.load(file).keys() == trained.state_dict().keys()


@pytest.mark.parametrize(
    "options",
    [
        {"tie": True, "embedding": 12},
        {"cell": "gru", "dtype": "float64"},
        {"cell": "rnn"},
        {"cell": "rnn_relu", "dropout": (0.1, 0, 0.2)},
        {"proj_size": 5, "layers": 2},
    ],
)
def test_save_and_load_every_kind(tmp_path, options):
    model = tiny(**options)
    model.build(TEXT)
    model.save(tmp_path)
    assert weights_equal(LanguageModel.load(tmp_path), model)


class _Disk:
    """Has room for so many writes, syncs and renames, then it is full."""

    def __init__(self, patch, room):
        self.room = room
        self.refused = None  # the first call without room
        self.renamed = []
        real = {"sync": os.fsync, "rename": os.replace, "open": Path.open}

        def sync(handle):
            self.take("sync")
            real["sync"](handle)

        def rename(source, target):
            self.take("rename", os.fspath(source), None, os.fspath(target))
            real["rename"](source, target)
            self.renamed.append(Path(target).name)

        class File(io.FileIO):
            def write(file, data):
                self.take("write")
                return super().write(data)

        def open_file(path, mode):
            return io.BufferedWriter(File(path, mode)) if mode == "xb" else real["open"](path, mode)

        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "replace", rename)
        patch.setattr(Path, "open", open_file)

    def take(self, call, *names):
        if self.room == 0:
            self.refused = self.refused or call
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names)
        self.room -= 1


def test_a_full_disk_leaves_the_old_model(trained, tmp_path, monkeypatch):
    old = tiny()
    old.build(TEXT)
    refused, named = set(), set()
    for room in itertools.count():
        folder = tmp_path / str(room)
        old.save(folder)
        before = sorted(os.listdir(folder))
        with monkeypatch.context() as patch:
            disk = _Disk(patch, room)
            try:
                trained.save(folder)
            except OSError as caught:
                error = caught
            else:
                break
        intact = "(free some, then save or resume: nothing that was saved is lost)"
        assert str(error).startswith(f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)} {intact}: '{folder}")
        assert "\n" not in str(error)
        refused.add(disk.refused)
        named.add(Path(error.filename).name)
        assert weights_equal(LanguageModel.load(folder), trained if "model.json" in disk.renamed else old)
        assert not [entry for entry in os.listdir(folder) if entry.startswith(".")]
        if not disk.renamed:
            assert sorted(os.listdir(folder)) == before
        trained.save(folder)  # removes what the failed one left
        assert weights_equal(LanguageModel.load(folder), trained)
        assert len(os.listdir(folder)) == 3
    assert refused == {"write", "sync", "rename"}
    assert named >= {"weights.safetensors", "training.safetensors", "model.json"}
    assert len(os.listdir(folder)) == 3


def set_at(*keys):
    *path, last, value = keys

    def change(data):
        for key in path:
            data = data[key]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("format", "other"), "is not a fastrnn.LanguageModel"),
        (set_at("version", 3), "must have version 2, got 3"),
        (set_at("files", None), "files is missing"),
        (set_at("files", "weights", "sha256", "0" * 64), "truncated or changed"),
        (set_at("files", "weights", "name", "../weights-0123456789ab.safetensors"), "bad entry for 'weights'"),
        (set_at("files", "weights", "name", "/etc/passwd"), "bad entry for 'weights'"),
        (set_at("files", "weights", None), "bad entry for 'weights'"),
        (lambda data: data["files"].pop("weights"), "state must have the names"),
        (set_at("config", "hidden", 13), "must have shape"),
        (set_at("config", "layers", 1), "state must have the names"),
        (set_at("config", "hidden", 10**15), "is damaged: lstm: "),
        (set_at("config", "hidden", "12"), "hidden must be an integer"),
        (set_at("config", "dtype", "float64"), "must be an array of float64, got float32"),
        (set_at("config", "level", "word"), "the vocabulary must be of level 'word', got 'char'"),
        (set_at("vocabulary", "level", "sound"), "must have a level of .'bpe', 'char', 'word'., got 'sound'"),
        (set_at("config", "extra", 1), "unexpected keyword argument 'extra'"),
        (lambda data: data["config"].pop("cell"), "config must have the keys"),
        (set_at("config", []), "it has no config"),
        (set_at("vocabulary", "symbols", "abc"), "must have shape"),
        (set_at("vocabulary", {}), "vocabulary must have a level"),
        (set_at("history", 3), "history must be a list"),
        (set_at("history", 0, 3), "history must be a list"),
        (set_at("history", 1, "epoch", 2.0), "history must have records of epochs and their losses, got {'epoch': 2.0"),
        (lambda data: data["history"][0].pop("epoch"), "history must have records of epochs and their losses"),
        (set_at("history", 0, "loss", "1.5"), "history must have records of epochs and their losses"),
        (set_at("history", 3, "valid_loss", None), "history must have records of epochs and their losses"),
    ],
)
def test_load_refuses_a_changed_index(trained, tmp_path, change, message):
    trained.save(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        LanguageModel.load(tmp_path)
    assert str(caught.value).startswith("LanguageModel.load: ")
    assert "\n" not in str(caught.value)


def test_load_refuses_an_index_that_is_not_as_it_was_written(trained, tmp_path):
    trained.save(tmp_path)
    index = tmp_path / "model.json"
    data = json.loads(index.read_text())
    index.write_text(json.dumps(data, sort_keys=True))  # the same in another layout
    assert weights_equal(LanguageModel.load(tmp_path), trained)
    for change in (
        set_at("config", "seed", 4),
        set_at("training", "progress", "steps", 31),
        set_at("history", []),
        set_at("sha256", "0" * 64),
    ):
        changed = json.loads(json.dumps(data))
        change(changed)
        index.write_text(json.dumps(changed))
        message = r"^LanguageModel\.load: .*model\.json is damaged: truncated, or changed by hand; it must be"
        with pytest.raises(ValueError, match=message):
            LanguageModel.load(tmp_path)


@pytest.mark.parametrize("target", ["model.json", "log.csv", "any.ids"])
def test_what_a_killed_process_left_goes_with_the_next_write(trained, tmp_path, target):
    left, other = tmp_path / f".writing-{target}", tmp_path / ".writing-mine"
    for folder in (left, other):
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"half")
    if target == "model.json":
        trained.save(tmp_path)
        assert weights_equal(LanguageModel.load(tmp_path), trained)
    else:
        checkpoint.replace_file(tmp_path / target, lambda file: file.write(b"whole"))
        assert (tmp_path / target).read_bytes() == b"whole"
    assert not left.exists()
    assert other.exists()  # of another file, which is perhaps being written now


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["training"].pop("rng"),
        set_at("training", 3),
        set_at("training", "text", []),
        set_at("training", "best", -1.0),
        set_at("training", "progress", "position", -16),
        set_at("training", "progress", "position", 5),
        set_at("training", "progress", "position", 128),
        set_at("training", "progress", "epoch", 5),
        set_at("training", "progress", "epoch", 4.0),
        set_at("training", "progress", "steps", 33),
        set_at("training", "progress", "epoch_steps", 3),
        set_at("training", "progress", "tokens", 64),
        set_at("training", "progress", "nats", float("inf")),
        set_at("training", "rng", {"bit_generator": "MT19937"}),
        set_at("training", "progress", None),
        set_at("training", "optimizer", "lr", -1),
        lambda data: data["files"].pop("training"),
    ],
)
def test_resume_refuses_a_changed_training_state(trained, tmp_path, change):
    trained.save(tmp_path)
    edit(tmp_path, change)
    model = LanguageModel.load(tmp_path)
    with pytest.raises(ValueError, match=r"^LanguageModel\.fit: the training state is damaged: ") as caught:
        model.fit(TEXT, epochs=6, resume=True, **QUICK)
    assert "\n" not in str(caught.value)
    assert weights_equal(model, trained)


def test_load_refuses_damaged_files(trained, tmp_path):
    def refused(kind, message):
        with pytest.raises(kind, match=message) as caught:
            LanguageModel.load(tmp_path)
        assert "\n" not in str(caught.value)

    refused(FileNotFoundError, "holds no saved model: model.json is missing")
    trained.save(tmp_path)
    (weights,) = tmp_path.glob("weights-*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    refused(ValueError, "truncated or changed")
    weights.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    refused(ValueError, "truncated or changed")
    weights.unlink()
    refused(FileNotFoundError, "weights-.*safetensors is missing")
    for text in ("", "{", "[1]", "\udc80" * 3, "[" * 100_000):
        (tmp_path / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(ValueError, "model.json is damaged: not (JSON|a JSON object)")


def test_load_refuses_what_is_no_safetensors_file(trained, tmp_path):
    trained.save(tmp_path)
    (weights,) = tmp_path.glob("weights-*.safetensors")
    weights.write_bytes(b"\x80\x04N.")  # a pickle
    edit(tmp_path, set_at("files", "weights", "sha256", hashlib.sha256(weights.read_bytes()).hexdigest()))
    with pytest.raises(ValueError, match=r"^LanguageModel\.load: .*weights-.*safetensors is damaged: its header"):
        LanguageModel.load(tmp_path)


@pytest.mark.parametrize("options", [{"layers": 2}, {"tie": True, "embedding": 12}])
def test_weights_load_into_torch(tmp_path, options):
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file

    class Model(torch.nn.Module):
        def __init__(self, symbols, embedding, hidden, layers):
            super().__init__()
            self.embedding = torch.nn.Embedding(symbols, embedding)
            self.recurrent = torch.nn.LSTM(embedding, hidden, layers)
            self.output = torch.nn.Linear(hidden, symbols)

        def forward(self, ids):
            return self.output(self.recurrent(self.embedding(ids))[0])

    model = tiny(**options)
    model.fit(TEXT, epochs=2, **QUICK)
    model.save(tmp_path)
    (weights,) = tmp_path.glob("weights-*.safetensors")
    peer = Model(len(model.vocabulary), model.embedding, model.hidden, model.layers)
    if model.tie:
        peer.output.weight = peer.embedding.weight
        result = peer.load_state_dict(load_file(weights), strict=False)
        assert result.missing_keys == ["output.weight"]  # which the line above made the embedding's
        assert not result.unexpected_keys
    else:
        peer.load_state_dict(load_file(weights), strict=True)
    text = TEXT[:60]
    ids = torch.from_numpy(model.vocabulary.encode(text).astype(np.int64))
    with torch.no_grad():
        log_p = torch.log_softmax(peer(ids[:-1]), dim=-1).gather(1, ids[1:, None])[:, 0]
    terms = model.layers * len(text) * (model.embedding + model.hidden)  # in the sums of each number
    np.testing.assert_allclose(model.score(text), log_p.numpy(), rtol=0, atol=terms * np.finfo(np.float32).eps)


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress_lines(capsys, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))  # a second for each step
    lines = progress_module.Lines(interval=0.0)
    monkeypatch.setattr(progress_module, "Lines", lambda: lines)
    history = tiny().fit(TEXT, TEXT, epochs=1, **QUICK | {"progress": True, "lr": 0.0123})
    out, err = capsys.readouterr()
    assert out == ""
    shown = re.findall(
        r"training: (\d)/8 \((\d+%)\)  loss (\S+)  ppl (\S+)  [\d,]+ tok/s  lr (\S+)(?:  ETA (\S+))?\n", err
    )
    assert [step for step, *_ in shown] == [*"12345678"]
    for step, share, loss, perplexity, lr, left in shown:
        assert share == f"{int(step) / 8:.0%}"
        expected = math.exp(float(loss))
        # The loss is told to three decimals, the perplexity to two.
        assert float(perplexity) == pytest.approx(expected, rel=0, abs=5.1e-4 * expected + 5.1e-3)
        assert lr == "1.2e-02"
        assert left == (f"0:00:{8 - int(step):02}" if step != "1" else "")
    assert f"epoch 1/1: loss {history[0]['loss']:.3f}" in err
    assert "tokens/s" in err


def test_progress_bar(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(progress_module.reporter("t", True)._report, progress_module.Bar)
    tiny().fit(TEXT, epochs=1, **QUICK | {"progress": True})
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 1/1: loss" in err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(progress_module.reporter("t", True)._report, progress_module.Lines)


def test_progress_refuses():
    with pytest.raises(TypeError, match="progress must be True, False or an object with start, update, message, close"):
        tiny().fit(TEXT, **QUICK | {"progress": "yes"})
