"""LanguageModel.fit: averaging, early stopping, samples, interrupted and failed runs."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import output
from fastrnn.models import LanguageModel, kinds
from fastrnn.models.model import perplexity
from tiny_model import QUICK, SGD, STEPS, TEXT, Reporter, options_of, poison, tiny, weights_equal

LOSSES = [5.0, 4.0, 4.5, 3.0, 3.5, 3.5, 3.5, 4.5, 2.0, 2.5, 2.5, 2.5]  # of scripted evaluations


def at(step, act):
    return Reporter(lambda done: act() if done == step else None)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def scripted(model, report, partial=None):
    """Its evaluations give LOSSES after whole epochs, and ``partial`` else."""

    def mean_nats(ids, batch_size):
        epochs, rest = divmod(report.done, STEPS)
        return partial if rest else LOSSES[epochs - 1]

    model._mean_nats = mean_nats
    return {"progress": report}


# -- averaging ---------------------------------------------------------------------------------------------------------


def mean_error(values) -> float:
    """Allowed in float32: each value's step rounds three numbers at most twice as large as the largest."""
    return 3 * len(values) * np.finfo(np.float32).eps * np.abs(values).max()


def test_average_is_the_mean_of_the_weights_after_each_step(tmp_path):
    plain, averaged = tiny(dropout=0.2), tiny(dropout=0.2)
    seen = []
    plain.fit(TEXT, epochs=4, **SGD | {"progress": Reporter(lambda done: seen.append(plain.state_dict()))})
    history = averaged.fit(TEXT, TEXT, epochs=4, average=2, checkpoint=tmp_path, **SGD)
    taken = seen[2 * STEPS - 1 :]  # from the end of the second epoch on
    for name, mean in averaged.state_dict().items():
        values = np.array([weights[name] for weights in taken], np.float64)
        assert np.abs(mean - values.mean(axis=0)).max() <= mean_error(values), name
    for record, weights in ((history[1], seen[2 * STEPS - 1]), (history[3], averaged.state_dict())):
        other = tiny()
        other.build(TEXT)
        other.load_state_dict(weights)
        assert record["valid_loss"] == other.evaluate(TEXT, batch_size=4)["loss"]
    assert weights_equal(LanguageModel.load(tmp_path), averaged)


def triggers(losses, n=5):
    """The epochs, from 1, at whose end the condition of Merity et al. holds, by its definition."""
    return [t + 1 for t in range(len(losses)) if t > n and losses[t] > min(losses[: t - n])]


def test_when_averaging_begins():
    rng, options = np.random.default_rng(0), options_of(average="plateau")
    chosen = [[], [3.0], [3, 2, 1, 4, 4, 4, 4], [1, 2, 2, 2, 2, 2, 1], [1, 2, 2, 2, 2, 2, 1.5], list(range(9, 0, -1))]
    found = 0
    for losses in chosen + [list(rng.random(rng.integers(1, 20))) for _ in range(50)]:
        got = [t for t in range(1, len(losses) + 1) if options.averages_from(t, losses[:t])]
        assert got == triggers(losses)
        found += len(got)
    assert found > 50
    assert not options_of().averages_from(7, [1, 2, 3, 4, 5, 6, 7])
    assert [t for t in range(1, 9) if options_of(average=3).averages_from(t, [])] == [3]


def test_average_by_plateau(tmp_path):
    model, other, seen = tiny(), tiny(), []
    report = scripted(model, Reporter(lambda done: seen.append(model.state_dict())))
    model.fit(TEXT, TEXT, epochs=11, average="plateau", checkpoint=tmp_path, **SGD | report)
    (begun, *_) = triggers(LOSSES)
    assert begun == 8
    other.fit(TEXT, epochs=11, average=begun, **SGD)
    assert weights_equal(model, other)
    assert weights_equal(model, LanguageModel.load(tmp_path))
    # The best epoch is the ninth: of the mean of the weights since the eighth.
    taken = seen[8 * STEPS - 1 : 9 * STEPS]
    for name, mean in LanguageModel.load(tmp_path / "best").state_dict().items():
        values = np.array([weights[name] for weights in taken], np.float64)
        assert np.abs(mean - values.mean(axis=0)).max() <= mean_error(values), name


@pytest.mark.parametrize("step", [11, 2 * STEPS, 2 * STEPS + 1, 3 * STEPS - 1, 3 * STEPS + 5])
@pytest.mark.parametrize("stop", ["exception", "ctrl_c"])
def test_an_averaged_run_goes_on_as_if_it_had_not_been_interrupted(tmp_path, step, stop):
    options = SGD | {"average": 2, "epochs": 5}
    whole, model = tiny(layers=2, dropout=0.2), tiny(layers=2, dropout=0.2)
    expected = whole.fit(TEXT, TEXT[:150], **options)

    def interrupt():
        if stop == "exception":
            raise KeyboardInterrupt
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXT, TEXT[:150], checkpoint=tmp_path, **options | {"progress": at(step, interrupt)})
    loaded = LanguageModel.load(tmp_path)
    if stop == "ctrl_c":  # the folder has what the model has
        assert weights_equal(model, loaded)
        assert model.evaluate(TEXT[:150], batch_size=4)["loss"] == model.history[-1]["valid_loss"]
    for each in (model, loaded):
        history = each.fit(TEXT, TEXT[:150], resume=True, **options)
        assert weights_equal(each, whole)
        assert history[-1]["valid_loss"] == expected[-1]["valid_loss"]
        assert each.fit(TEXT, TEXT[:150], resume=True, **options) == history  # nothing is left to do
        assert weights_equal(each, whole)
    assert weights_equal(model, loaded)


def test_resume_refuses_a_damaged_average():
    model = tiny()
    model.fit(TEXT, epochs=3, average=1, **SGD)
    weights = model.state_dict()
    model._training.arrays.pop("average.0.weight.mean")
    with pytest.raises(ValueError, match=r"^LanguageModel\.fit: the training state is damaged: .*mean"):
        model.fit(TEXT, epochs=4, average=1, resume=True, **SGD)
    assert all(np.array_equal(weights[name], array) for name, array in model.state_dict().items())


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"schedule": "zaremba"}, {"schedule": "zaremba", "decay": 0.25}, "decay=0.5, got 0.25"),
        ({"schedule": "zaremba"}, {"schedule": "zaremba", "decay_after": 6}, "decay_after=4, got 6"),
        ({"average": 1}, {}, "average=1, got None"),
        ({}, {"average": 1}, "average=None, got 1"),
    ],
)
def test_resume_refuses_other_options(before, after, message):
    model = tiny()
    model.fit(TEXT, epochs=1, **SGD | before)
    with pytest.raises(ValueError, match=rf"^LanguageModel\.fit: resume needs the same {message}"):
        model.fit(TEXT, epochs=2, resume=True, **SGD | after)


@pytest.mark.parametrize("options", [{"schedule": "plateau"}, {"average": "plateau"}, {"patience": 3}])
@pytest.mark.parametrize("partial", [0.0, 9.0])
@pytest.mark.parametrize("step", [3, 3 * STEPS + 1, 6 * STEPS + 7])
def test_an_interrupted_epoch_decides_nothing(options, partial, step):
    """The evaluation after Ctrl-C is none that the rate, averaging or the end of the run depend on."""
    run = SGD | options | {"epochs": 11}
    whole, model = tiny(), tiny()
    expected = whole.fit(TEXT, TEXT, **run | scripted(whole, Reporter()))
    assert len(expected) == (7 if "patience" in options else 11)
    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXT, TEXT, **run | scripted(model, at(step, ctrl_c), partial))
    assert [record["steps"] for record in model.history] == [*range(STEPS, step, STEPS), step]
    assert model.history[-1]["valid_loss"] == partial
    model.fit(TEXT, TEXT, resume=True, **run | scripted(model, Reporter()))
    assert weights_equal(model, whole)
    times = ("seconds", "tokens_per_second")
    seen = [[{**record, **dict.fromkeys(times)} for record in each.history] for each in (model, whole)]
    assert seen[0] == seen[1]


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_fit import SGD, Reporter, TEXT, tiny

def end(*args):
    os.kill(os.getpid(), signal.SIGKILL)

model, options, step = tiny(dropout=0.2), SGD | {{"epochs": 5, "average": 2}}, {step}
if step:
    options["progress"] = Reporter(lambda done: end() if done == step else None)
else:  # in the middle of a checkpoint: its index is not there yet
    def replace(source, target, real=os.replace):
        if str(target).endswith("model.json") and len(model.history) == 4:
            end()
        real(source, target)
    os.replace = replace
model.fit(TEXT, TEXT, checkpoint={folder!r}, **options)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("step", [2, STEPS + 3])
def test_a_run_killed_within_a_long_epoch_goes_on_within_it(tmp_path, step):
    """As one whose epoch takes longer than a checkpoint may be old."""
    options = SGD | {"epochs": 3, "average": 2}
    code = "from fastrnn.models import run\nrun.CHECKPOINT_SECONDS = 0.0\n"
    code += _KILLED.format(tests=str(Path(__file__).parent), step=step, folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole, model = tiny(dropout=0.2), LanguageModel.load(tmp_path)
    assert model._training.data["progress"]["steps"] == step - 1
    assert len(model.history) == step // STEPS
    whole.fit(TEXT, TEXT, **options)
    model.fit(TEXT, TEXT, resume=True, checkpoint=tmp_path, **options)
    assert weights_equal(model, whole)
    times = dict.fromkeys(("seconds", "tokens_per_second"))
    assert [record | times for record in model.history] == [record | times for record in whole.history]


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("step", [0, 2 * STEPS + 3])
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, step):
    options = SGD | {"epochs": 5, "average": 2}
    code = _KILLED.format(tests=str(Path(__file__).parent), step=step, folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole, model = tiny(dropout=0.2), LanguageModel.load(tmp_path)
    assert len(model.history) == (2 if step else 3)
    whole.fit(TEXT, TEXT, **options)
    model.fit(TEXT, TEXT, resume=True, checkpoint=tmp_path, **options)
    assert weights_equal(model, whole)
    assert weights_equal(LanguageModel.load(tmp_path), whole)


_CUT_OFF = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_fit import SGD, Reporter, TEXT, scripted, tiny

model, left = tiny(dropout=0.2), {calls}
def replace(source, target, real=os.replace):
    global left
    if model.history and model.history[-1]["epoch"] == 4:
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    real(source, target)
os.replace = replace
model.fit(TEXT, TEXT, epochs=5, checkpoint={folder!r}, **SGD | scripted(model, Reporter()))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("calls", range(6))
def test_a_run_killed_between_two_files_keeps_its_best_model(tmp_path, calls):
    """The fourth epoch has the lowest loss: its end replaces weights and index of best, the same and the training
    state of the checkpoint, and the log."""
    code = _CUT_OFF.format(tests=str(Path(__file__).parent), calls=calls, folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    model, whole, seen = LanguageModel.load(tmp_path), tiny(dropout=0.2), []
    assert len(model.history) == (4 if calls == 5 else 3)
    report = Reporter(lambda done: seen.append(whole.state_dict()))
    whole.fit(TEXT, TEXT, epochs=5, **SGD | scripted(whole, report))
    model.fit(TEXT, TEXT, epochs=5, resume=True, checkpoint=tmp_path, **SGD | scripted(model, Reporter()))
    assert weights_equal(model, whole)
    best = kinds.load_best(tmp_path)
    assert [record["epoch"] for record in best.history] == [1, 2, 3, 4]
    for name, array in best.state_dict().items():
        assert np.array_equal(array, seen[4 * STEPS - 1][name])
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5"]
    assert not list(tmp_path.rglob(".writing-*"))


def test_the_best_model_may_be_one_within_an_epoch(tmp_path):
    model = tiny()
    run = SGD | {"checkpoint": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXT, TEXT, epochs=8, **run | scripted(model, at(4 * STEPS + 3, ctrl_c), partial=2.5))
    best = LanguageModel.load(tmp_path / "best")
    assert weights_equal(best, model)
    model = LanguageModel.load(tmp_path)
    model.fit(TEXT, TEXT, epochs=8, resume=True, **run | scripted(model, Reporter()))
    assert min(record["valid_loss"] for record in model.history) == 3.0  # the part's record is gone
    assert weights_equal(LanguageModel.load(tmp_path / "best"), best)
    model.fit(TEXT, TEXT, epochs=9, resume=True, **run | scripted(model, Reporter()))
    assert weights_equal(LanguageModel.load(tmp_path / "best"), model)  # 2.0


def test_another_number_of_threads_is_told():
    model, before = tiny(), fastrnn.get_num_threads()
    same, other = Reporter(), Reporter()
    try:
        fastrnn.set_num_threads(1)
        model.fit(TEXT, epochs=1, **QUICK)
        model.fit(TEXT, epochs=2, resume=True, **QUICK | {"progress": same})
        fastrnn.set_num_threads(2)
        model.fit(TEXT, epochs=3, resume=True, **QUICK | {"progress": other})
    finally:
        fastrnn.set_num_threads(before)
    assert not [message for message in same.messages if "threads" in message]
    assert other.messages[0] == "the run had 1 threads, now 2: its numbers may differ by rounding"


# -- early stopping ----------------------------------------------------------------------------------------------------


def test_patience(tmp_path):
    model, seen = tiny(), []
    # Without a lower loss are: epoch 3; epochs 5 to 8; epochs 10 to 12.
    for patience, epochs, last, best in ((2, 12, 6, 4), (3, 12, 7, 4), (4, 8, 8, 4), (5, 12, 12, 9)):
        report = Reporter(lambda done: done % STEPS or seen.append(model.state_dict()))
        run = SGD | {"epochs": epochs, "patience": patience, "checkpoint": tmp_path}
        history = model.fit(TEXT, TEXT, **run | scripted(model, report), resume=bool(seen))
        assert len(history) == last
        stopped = [f"stopped: no lower loss on valid in {patience} epochs"] if patience < 5 else []
        assert [message for message in report.messages if message.startswith("stopped")] == stopped
        for folder, epoch in ((tmp_path, last), (tmp_path / "best", best)):
            stored = LanguageModel.load(folder).state_dict()
            assert all(np.array_equal(seen[epoch - 1][name], array) for name, array in stored.items())
        silent = Reporter()
        again = model.fit(TEXT, TEXT, **run | scripted(model, silent), resume=True)
        assert again == history  # its patience is at an end already
        assert silent.messages == []
        assert all(np.array_equal(seen[last - 1][name], array) for name, array in model.state_dict().items())


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [None, 1])
def test_samples_change_nothing(average):
    plain, shown, report = tiny(dropout=0.2), tiny(dropout=0.2), Reporter()
    run = SGD | {"epochs": 2, "average": average}
    plain.fit(TEXT, TEXT, **run)
    shown.fit(TEXT, TEXT, sample_every=4, **run | {"progress": report})
    assert weights_equal(plain, shown)
    assert plain.generate("he", 30) == shown.generate("he", 30)
    samples = [message.split(" writes:\n") for message in report.messages if "writes" in message]
    assert [title for title, _ in samples] == ["step 4", "step 8", "step 12", "step 16"]
    assert all(len(text) == 101 and set(text[:-1]) <= set(TEXT) for _, text in samples)
    # The last one is by the weights that evaluations and checkpoints have, too.
    assert samples[-1][1] == shown.generate(max_new_tokens=100, temperature=0.8, seed=shown.seed) + "\n"


# -- runs that end early -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3, STEPS, 2 * STEPS - 1])
def test_ctrl_c_ends_with_an_evaluation_and_a_checkpoint(tmp_path, step):
    whole, model = tiny(dropout=0.2), tiny(dropout=0.2)
    whole.fit(TEXT, TEXT, epochs=3, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXT, TEXT, epochs=3, checkpoint=tmp_path, **QUICK | {"progress": at(step, ctrl_c)})
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    loaded = LanguageModel.load(tmp_path)
    assert loaded.history[-1]["steps"] == step
    assert loaded.evaluate(TEXT, batch_size=4)["loss"] == loaded.history[-1]["valid_loss"]
    history = loaded.fit(TEXT, TEXT, epochs=3, checkpoint=tmp_path, resume=True, **QUICK)
    assert weights_equal(loaded, whole)
    assert [record["steps"] for record in history] == [STEPS, 2 * STEPS, 3 * STEPS]  # no part counts twice
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [float(row["seconds"]) for row in csv.DictReader(file)] == [record["seconds"] for record in history]


def test_a_second_ctrl_c_acts_at_once():
    model = tiny()
    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXT, TEXT, **QUICK | {"progress": at(3, lambda: (ctrl_c(), ctrl_c()))})
    assert model.history == []


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path):
    whole, model = tiny(), tiny()
    whole.fit(TEXT, TEXT, epochs=4, **QUICK)
    message = rf"step {2 * STEPS + 4} \(epoch 3\) has loss nan .*; the last good checkpoint is in {tmp_path}"
    run = QUICK | {"epochs": 4, "checkpoint": tmp_path}
    report = at(2 * STEPS + 3, lambda: poison(model))
    with pytest.raises(FloatingPointError, match=rf"^LanguageModel\.fit: {message}$") as caught:
        model.fit(TEXT, TEXT, **run | {"progress": report})
    assert "\n" not in str(caught.value)
    loaded = LanguageModel.load(tmp_path)
    assert len(loaded.history) == 2
    assert weights_equal(LanguageModel.load(tmp_path / "best"), loaded)
    bad = LanguageModel.load(tmp_path)
    poison(bad)
    with pytest.raises(FloatingPointError, match="the last good checkpoint is in"):  # the one that it began with
        bad.fit(TEXT, TEXT, resume=True, **run)
    loaded.fit(TEXT, TEXT, resume=True, **run)
    assert weights_equal(loaded, whole)


@pytest.mark.parametrize("folder", [None, "."])
def test_without_a_checkpoint_none_is_named(tmp_path, folder):
    model = tiny()
    run = QUICK | {"epochs": 2, "checkpoint": folder and tmp_path / folder}
    with pytest.raises(FloatingPointError, match=r"step 3 .* has loss nan") as caught:
        model.fit(TEXT, **run | {"progress": at(2, lambda: poison(model))})
    assert "checkpoint" not in str(caught.value)


def test_a_valid_loss_that_is_not_finite_is_no_result(tmp_path):
    model = tiny()
    message = rf"after step {2 * STEPS} \(epoch 2\) valid has loss nan: .*checkpoint is in {tmp_path}$"
    report = at(2 * STEPS, lambda: poison(model))  # after the last step of the epoch
    with pytest.raises(FloatingPointError, match=rf"^LanguageModel\.fit: {message}"):
        model.fit(TEXT, TEXT, epochs=4, checkpoint=tmp_path, **QUICK | {"progress": report})
    with pytest.raises(ValueError, match="resume needs a model with training state"):
        model.fit(TEXT, TEXT, epochs=4, resume=True, **QUICK)
    loaded = LanguageModel.load(tmp_path)
    assert [record["epoch"] for record in loaded.history] == [1]
    loaded.fit(TEXT, TEXT, epochs=2, resume=True, **QUICK)


def test_perplexity_is_finite():
    assert perplexity(1.5) == math.exp(1.5)
    assert math.isfinite(perplexity(1e4))
    model = tiny()
    model.build(TEXT)
    model._mean_nats = lambda ids, batch_size: 1e4
    json.dumps(model.evaluate(TEXT), allow_nan=False)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_json_file_holds_what_json_has_not(tmp_path, value):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.write_json(path, {"perplexity": value})
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]
