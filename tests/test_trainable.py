"""What models trained by gradients share, on a toy: the figure that judges, exact resume, refusals, files."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from fastrnn.models.run import Settings
from fastrnn.models.schedules import Options
from fastrnn.models.trainable import Trainable
from fastrnn.models.vocabulary import CharVocabulary, WordVocabulary
from tiny_model import Reporter

LENGTH, STRIDE = 11, 4
STEPS = 3  # of an epoch; the last one has fewer positions


class Points:
    """Its steps depend on epoch and position, on what is drawn and on the step before, and have different tokens."""

    what = "train points"

    def __init__(self, noise=0.1, fingerprint=(7, 1)):
        self.options, self.fingerprint = {"noise": noise}, list(fingerprint)
        self.length, self.stride = LENGTH, STRIDE
        self.seen = []

    def tokens_before(self, epoch, position):
        return sum(self._tokens(epoch, begin) for begin in range(0, position, STRIDE))

    def _tokens(self, epoch, position):
        return min(STRIDE, LENGTH - position) + epoch

    def step(self, model, epoch, position, state, rng, done):
        self.seen.append((epoch, position, state is None, done))
        before = np.zeros(3) if state is None else state
        target = np.array([epoch, position, 1.0]) + self.options["noise"] * rng.standard_normal(3) + before
        error = model.part.parameters["weight"] - target
        model.part.grads["weight"][...] = 2.0 * error
        return float(error @ error), self._tokens(epoch, position), 0.5 * target


class Toy(Trainable):
    _format = "test.Toy"
    _config = ("seed",)
    _VOCABULARIES = ("source", "target")

    def __init__(self, seed=3):
        super().__init__(seed)
        self.vocabularies = None
        weight, grad = np.random.default_rng(self._seeds["weights"]).standard_normal(3), np.zeros(3)
        self.part = SimpleNamespace(parameters={"weight": weight}, grads={"weight": grad})

    def _parts(self):
        return {"toy": self.part}

    def _vocabularies(self):
        if self.vocabularies is None:
            raise RuntimeError("Toy.save: the model has no vocabulary yet: call fit (or build) first")
        return self.vocabularies

    def _set_vocabularies(self, vocabularies):
        self.vocabularies = vocabularies

    def fit(
        self, data, evaluate=None, judge="valid_loss", *,
        epochs=4, patience=None, checkpoint=None, resume=False, progress=False, **options,
    ):  # fmt: skip
        options = Options.checked("Toy.fit", **{"optimizer": "sgd", "lr": 0.01, "momentum": 0.5} | options)
        settings = Settings.checked(
            "Toy.fit", epochs=epochs, patience=patience, seconds=None, sample_every=None, checkpoint=checkpoint,
            resume=resume, progress=progress,
        )  # fmt: skip
        self._begin(settings)
        return self._fit(settings, options, data, evaluate, None, judge)


def toy() -> Toy:
    model = Toy()
    words = WordVocabulary.of_pieces(["one two"], 1)
    model._set_vocabularies({"source": words, "target": CharVocabulary.of_pieces(["abc"], 1)})
    return model


def weight_of(model):
    return model.state_dict()["toy.weight"]


def interrupted_at(step):
    def stop(done):
        if done == step:
            raise KeyboardInterrupt

    return Reporter(stop)


# -- the figure that judges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("judge", "better"), [("loss", min), ("wer", min), ("bleu", max), ("accuracy", max)])
@pytest.mark.parametrize("seed", range(4))
def test_the_figure_that_judges_decides(tmp_path, judge, better, seed):
    """What is best, patience, and the rate after plateaus; the other figures decide nothing."""
    rng, patience, epochs, decay = np.random.default_rng(seed), 4, 12, 0.5
    scores = rng.integers(0, 9, epochs) / 4.0
    names = dict.fromkeys([judge] if seed % 2 else ["loss", judge])
    found = [{name: float(score if name == judge else rng.random()) for name in names} for score in scores]
    model, weights, evaluations = toy(), [], iter(found)

    def evaluate():
        weights.append(weight_of(model))
        return next(evaluations)

    run = {"epochs": epochs, "patience": patience, "schedule": "plateau", "decay": decay, "checkpoint": tmp_path}
    report = Reporter()
    history = model.fit(Points(), evaluate, f"valid_{judge}", progress=report, **run)

    best, last, rate, rates = 0, epochs - 1, 0.01, []
    for epoch, score in enumerate(scores):
        rates.append(rate)
        if epoch and better(score, best_score := scores[best]) == score != best_score:
            best = epoch
        elif epoch:
            rate *= decay
        if epoch - best == patience:
            last = epoch
            break
    assert [record["lr"] for record in history] == pytest.approx(rates, rel=1e-14)
    assert [{name: record[f"valid_{name}"] for name in names} for record in history] == found[: last + 1]
    assert model._training.data["best"] == scores[best]
    for folder, epoch in ((tmp_path / "best", best), (tmp_path, last)):
        loaded = Toy.load(folder)
        assert np.array_equal(weight_of(loaded), weights[epoch])
        assert len(loaded.history) == epoch + 1
    direction = "lower" if better is min else "higher"
    stopped = [f"stopped: no {direction} {judge} on valid in {patience} epochs"] if last < epochs - 1 else []
    assert [message for message in report.messages if message.startswith("stopped")] == stopped
    resumed = Toy.load(tmp_path)
    if last < epochs - 1:  # with more patience it goes on, and the best one stays the best
        resumed.fit(Points(), lambda: dict.fromkeys(names, float(scores[best])), f"valid_{judge}", **run | {
            "resume": True, "patience": patience + 1,
        })  # fmt: skip
        assert len(resumed.history) == last + 2
        assert len(Toy.load(tmp_path / "best").history) == best + 1


@pytest.mark.parametrize(
    ("figures", "shown"),
    [
        ({"loss": 1.25}, "valid loss 1.250"),
        ({"loss": 1.25, "perplexity": 3.49034}, "valid 3.49"),
        ({"loss": 1.25, "perplexity": 3.49034, "bleu": 28.125}, "valid 3.49, bleu 28.12"),
        ({"loss": 1.25, "accuracy": 0.875}, "valid accuracy 0.875"),
    ],
)
def test_figures_on_valid_are_shown(figures, shown):
    report = Reporter()
    toy().fit(Points(), lambda: figures, epochs=1, progress=report)
    assert f", {shown}, " in report.messages[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_figure_must_be_finite(value):
    model = toy()
    message = rf"^Toy\.fit: after step {STEPS} \(epoch 1\) valid has bleu {value}: try a lower lr \(now 0\.01\)"
    with pytest.raises(FloatingPointError, match=message):
        model.fit(Points(), lambda: {"loss": 1.0, "bleu": value})
    assert model.history == []


# -- resume ------------------------------------------------------------------------------------------------------------


def test_steps_know_where_they_are():
    data = Points()
    history = toy().fit(data, epochs=2)
    positions = [(epoch, position) for epoch in range(2) for position in range(0, LENGTH, STRIDE)]
    assert data.seen == [(*place, place[1] == 0, step / 6) for step, place in enumerate(positions)]
    for epoch, record in enumerate(history):
        tokens = record["tokens_per_second"] * record["seconds"]
        assert tokens == pytest.approx(data.tokens_before(epoch, LENGTH), rel=1e-9) == LENGTH + STEPS * epoch


@pytest.mark.parametrize("step", range(1, 4 * STEPS + 1))
@pytest.mark.parametrize("options", [{"optimizer": "adam", "momentum": 0.0}, {"average": 2}])
def test_a_resumed_run_is_that_of_one_to_the_bit(tmp_path, step, options):
    whole, model = toy(), toy()
    expected = whole.fit(Points(), **options)
    with pytest.raises(KeyboardInterrupt):
        model.fit(Points(), progress=interrupted_at(step), checkpoint=tmp_path, **options)
    model.save(tmp_path)
    for each in (model, Toy.load(tmp_path)):
        history = each.fit(Points(), resume=True, **options)
        assert np.array_equal(weight_of(each), weight_of(whole))
        assert [record["loss"] for record in history] == [record["loss"] for record in expected]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Points(noise=0.2), "resume needs the same noise=0.1, got 0.2"),
        (Points(fingerprint=(8, 1)), "resume needs the same train points: 7 tokens, got 8"),
        (Points(fingerprint=(7, 2)), "resume needs the same train points: 7 tokens, got others"),
    ],
)
def test_resume_refuses_other_data(tmp_path, data, message):
    model = toy()
    model.fit(Points(), epochs=1)
    model.save(tmp_path)
    assert model._training.data["options"]["noise"] == 0.1  # beside those of the steps
    before = weight_of(model)
    for each in (model, Toy.load(tmp_path)):
        with pytest.raises(ValueError, match=f"^Toy.fit: {message}$"):
            each.fit(data, resume=True)
        assert np.array_equal(weight_of(each), before)
    model.fit(Points(), resume=True)


@pytest.mark.parametrize("step", [STEPS + 1, 2 * STEPS])
def test_resume_refuses_a_number_of_tokens_that_the_place_has_not(step):
    """Of the epoch that is being read, or that has just been."""
    model = toy()
    with pytest.raises(KeyboardInterrupt):
        model.fit(Points(), progress=interrupted_at(step))
    progress = model._training.data["progress"]
    tokens = progress["tokens"]
    progress["tokens"] += 1
    with pytest.raises(ValueError, match=rf"the training state is damaged: .*tokens must be {tokens} at position"):
        model.fit(Points(), resume=True)
    progress["tokens"] = tokens
    model.fit(Points(), resume=True)


def test_a_resume_that_is_refused_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"^Toy\.fit: resume needs a model with training state: fitted before"):
        toy().fit(Points(), resume=True, checkpoint=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# -- files -------------------------------------------------------------------------------------------------------------


def test_each_vocabulary_is_saved_under_its_key(tmp_path):
    model = toy()
    model.fit(Points(), epochs=1)
    model.save(tmp_path)
    loaded = Toy.load(tmp_path)
    assert loaded.vocabularies == model.vocabularies
    assert list(loaded.vocabularies) == ["source", "target"]
    assert loaded.history == model.history
    assert loaded.num_parameters == 3
    assert loaded.nbytes == 24
    with pytest.raises(RuntimeError, match=r"^Toy\.save: the model has no vocabulary yet"):
        Toy().save(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(RuntimeError, match=r"^Toy\.load: device must be 'cpu' for models of this kind, got 'cuda'"):
        Toy.load(tmp_path, device="cuda")
