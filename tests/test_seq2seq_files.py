"""Seq2Seq: save, load and resume, and every refusal."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from fastrnn.models import LanguageModel, Seq2Seq
from model_files import edit
from pair_models import check_files
from tiny_model import Reporter
from tiny_seq2seq import PAIRS, RUN, SOURCE, tiny


@pytest.fixture(scope="module")
def trained() -> Seq2Seq:
    model = tiny(bidirectional=True)
    model.fit(PAIRS, epochs=2, **RUN)
    return model


# -- files -------------------------------------------------------------------------------------------------------------


def test_files(tmp_path):
    def make():
        return tiny(dropout=0.2, bidirectional=True, layers=2)

    check_files(make, PAIRS, lambda model: model.translate(SOURCE), tmp_path)


def test_a_run_that_was_cut_off_goes_on_to_the_bit(tmp_path):
    class Stop(Exception):
        pass

    def stop(at):
        def update(done):
            if done == at:
                raise Stop

        return Reporter(update)

    options = {"epochs": 3, "batch_size": 8, "lr": 0.02, "sampling": 0.4}
    whole = tiny(dropout=0.2)
    whole.fit(PAIRS, **options, progress=False)
    steps = whole.history[-1]["steps"]
    for at in (steps // 3 + 1, steps // 3, steps - 1):
        model = tiny(dropout=0.2)
        with pytest.raises(Stop):
            model.fit(PAIRS, **options, progress=stop(at))
        model.save(tmp_path)
        model = Seq2Seq.load(tmp_path)
        model.fit(PAIRS, **options, progress=False, resume=True)
        for name, array in whole.state_dict().items():
            assert np.array_equal(model.state_dict()[name], array), (at, name)


def test_the_metric_decides_what_is_best(tmp_path, monkeypatch):
    model, figures = tiny(), iter([0.1, 0.7, 0.3, 0.2])
    monkeypatch.setattr(
        model, "_figures", lambda *args, **options: {"loss": 1.0, "perplexity": 2.0, "exact": next(figures)}
    )
    history = model.fit(PAIRS, PAIRS, epochs=9, metric="exact", patience=2, checkpoint=tmp_path, **RUN)
    assert [record["valid_exact"] for record in history] == [0.1, 0.7, 0.3, 0.2]
    assert len(Seq2Seq.load(tmp_path / "best").history) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("source"), "vocabulary must have a level"),
        (lambda data: data["target"].update(level="char"), "CharVocabulary: symbols must be"),
        (lambda data: data["config"].update(hidden=25), "must have shape"),
        (lambda data: data["config"].update(tgt_level="char"), "target vocabulary must be of level 'char', got 'word'"),
        (lambda data: data["source"].update(symbols="eins"), "must have shape"),
        (lambda data: data["source"].update(symbols="eins eins"), "words must be different from each other"),
        (lambda data: data["config"].pop("reverse"), "config must have the keys"),
        (lambda data: data.update(history=[{"epoch": "1"}]), "history must have records"),
        (lambda data: data["config"].update(attention="dot", bidirectional=True), "use 'general'"),
    ],
)
def test_changed_checkpoints(trained, tmp_path, change, message):
    trained.save(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        Seq2Seq.load(tmp_path)
    assert str(caught.value).startswith(f"Seq2Seq.load: {tmp_path} is damaged: ")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_whose_vocabulary_has_no_end_of_a_line(tmp_path):
    model = tiny(level="char")
    model.fit((["ab", "b"], ["a", "ba"]), epochs=1, **RUN)
    model.save(tmp_path)
    edit(tmp_path, lambda data: data["target"].update(symbols=data["target"]["symbols"].replace("\n", "")))
    with pytest.raises(ValueError, match="the target vocabulary must have a symbol for the end of a line"):
        Seq2Seq.load(tmp_path)


def test_a_checkpoint_of_another_kind(tmp_path):
    model = LanguageModel(embedding=4, hidden=4, seed=1)
    model.build("ab")
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"is not a fastrnn\.Seq2Seq"):
        Seq2Seq.load(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no saved model"):
        Seq2Seq.load(tmp_path)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": "line"}, ValueError, "level must be one of"),
        ({"tgt_level": "line"}, ValueError, "tgt_level must be one of"),
        ({"cell": "lstn"}, ValueError, "cell must be one of"),
        ({"hidden": 0}, ValueError, "hidden must be an integer >= 1, got 0"),
        ({"dropout": 1.5}, ValueError, "dropout must be"),
        ({"attention": "soft"}, ValueError, "attention must be one of"),
        ({"tie": True}, ValueError, "tie needs embedding == hidden, got embedding=12 and hidden=24"),
        ({"attention": "dot", "bidirectional": True}, ValueError, "use 'general'"),
        ({"attention": "none", "input_feeding": True}, ValueError, "input_feeding feeds what attention found"),
        ({"bidirectional": 1}, TypeError, "bidirectional must be"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of"),
    ],
)
def test_constructor_refuses(options, error, message):
    with pytest.raises(error, match=f"Seq2Seq: .*{message}"):
        tiny(**options)


@pytest.mark.parametrize(
    ("pairs", "options", "error", "message"),
    [
        ("ab", {}, TypeError, "train must be two, source and target"),
        ((SOURCE,), {}, TypeError, "got 1 of them"),
        (("a", "b"), {}, TypeError, "a file is given as a pathlib.Path"),
        ((["a", 1], ["b", "c"]), {}, TypeError, r"train\[0\] must be a list of str, got int as line 2"),
        ((["a", "b\nc"], ["b", "c"]), {}, ValueError, r"train\[0\]: line 2 holds a line break"),
        ((["a", "b"], ["b"]), {}, ValueError, r"train\[0\] and train\[1\] must have equally many lines, got 2 and 1"),
        (([], []), {}, ValueError, "train must have at least one pair, got none"),
        (PAIRS, {"max_length": 1}, ValueError, r"train\[0\]: line 1 has 2 tokens, more than max_length=1"),
        (PAIRS, {"label_smoothing": 1.0}, ValueError, "label_smoothing must be below 1, got 1.0"),
        (PAIRS, {"sampling": 2.0}, ValueError, "sampling must be"),
        (PAIRS, {"metric": "bleu"}, ValueError, "metric='bleu' needs valid pairs"),
        (PAIRS, {"metric": "rouge"}, ValueError, "metric must be one of"),
        (PAIRS, {"patience": 1}, ValueError, "patience needs valid pairs"),
        (PAIRS, {"schedule": "plateau"}, ValueError, "schedule='plateau' needs valid pairs"),
        (PAIRS, {"batch_size": 0}, ValueError, "batch_size must be"),
        (PAIRS, {"max_tokens": 0}, ValueError, "max_tokens must be"),
        (PAIRS, {"checkpoint": 3}, TypeError, "checkpoint must be the path of a folder, got int"),
        (PAIRS, {"resume": True}, ValueError, "resume needs a model with training state"),
    ],
)
def test_fit_refuses(tmp_path, pairs, options, error, message):
    model = tiny()
    with pytest.raises(error, match=message):
        model.fit(pairs, **{"checkpoint": tmp_path / "out", "progress": False} | options)
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_refused_leave_no_vocabulary(tmp_path):
    model = tiny()
    for train, valid in ((PAIRS, None), ((["a"], ["b"]), PAIRS)):
        with pytest.raises(ValueError, match="more than max_length=1"):
            model.fit(train, valid, max_length=1, **RUN)
        with pytest.raises(RuntimeError, match=r"Seq2Seq\.save: the model has no vocabularies yet"):
            model.save(tmp_path / "none")
    model.fit(PAIRS, epochs=1, **RUN)
    with pytest.raises(ValueError, match="resume needs the same train pairs: 86 tokens, got 2"):
        model.fit((["eins"], ["one"]), epochs=2, resume=True, **RUN)
    with pytest.raises(ValueError, match=r"resume needs the same label_smoothing=0\.0, got 0\.5"):
        model.fit(PAIRS, epochs=2, resume=True, label_smoothing=0.5, **RUN)


def test_files_are_named_with_their_line(tmp_path):
    source, target = tmp_path / "a.src", tmp_path / "a.tgt"
    source.write_bytes(b"a\nb c d\n")
    target.write_bytes(b"a\nb\nc\n")
    with pytest.raises(ValueError, match=f"{source} and {target} must have equally many lines, got 2 and 3"):
        tiny().fit((source, target), progress=False)
    target.write_bytes(b"a\nb\n")
    with pytest.raises(ValueError, match=f"^{source}: line 2 has 3 tokens, more than max_length=2$"):
        tiny().fit((source, target), max_length=2, progress=False)
    model = tiny()
    model.build(PAIRS)
    assert model.translate(source) == model.translate(["a", "b c d"])
    for call in (model.translate, model.translations):
        with pytest.raises(ValueError, match=f"^{source}: line 2 has 3 tokens, more than max_length=2$"):
            call(source, max_length=2)
    for call in (model.evaluate, model.score):
        with pytest.raises(ValueError, match=f"^{source}: line 2 has 3 tokens, more than max_length=2$"):
            call((source, target), max_length=2)
    target.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=f"^{target} is not UTF-8 text: line 2"):
        tiny().fit((source, target), progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beam": 0}, ValueError, "beam must be"),
        ({"n_best": 2}, ValueError, "n_best must be at most beam=1, got 2"),
        ({"length_penalty": 2.0}, ValueError, "length_penalty must be"),
        ({"coverage_penalty": -1.0}, ValueError, "coverage_penalty must be"),
        ({"unknown": "drop"}, ValueError, "unknown must be one of"),
        ({"temperature": 1.0, "beam": 2}, ValueError, "temperature is for beam=1, got temperature=1.0 and beam=2"),
        ({"top_k": 2}, ValueError, "top_k is for drawing, got top_k=2 and temperature=0"),
        ({"seed": 2}, ValueError, "seed is for drawing"),
        ({"max_length": 1}, ValueError, "lines: line 1 has 2 tokens, more than max_length=1"),
        ({"depth": 1}, TypeError, r"Seq2Seq\.translations: options must be some of length_penalty, .*, got 'depth'"),
    ],
)
def test_translations_refuse(trained, options, error, message):
    with pytest.raises(error, match=message):
        trained.translations(["eins zwei"], **options)


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("eins", TypeError, "lines must be a list of lines or the path of a file, got str; a file is given as a path"),
        (5, TypeError, "lines must be a list of lines or the path of a file, got int"),
        (["eins", None], TypeError, "lines must be a list of str, got NoneType as line 2"),
        (["eins\n"], ValueError, "lines: line 1 holds a line break"),
    ],
)
def test_lines_that_are_refused(trained, lines, error, message):
    for name in ("translate", "translations"):
        with pytest.raises(error, match=rf"^Seq2Seq\.{name}: {message}"):
            getattr(trained, name)(lines)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": ["rouge"]}, ValueError, "metrics must be one of 'bleu', 'chrf', 'wer', 'exact', got 'rouge'"),
        ({"beam": 0}, ValueError, "beam must be an integer >= 1, got 0"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer >= 1, got True"),
        ({"max_length": 0}, ValueError, "max_length must be an integer >= 1, got 0"),
        ({"max_length": 1}, ValueError, r"pairs\[0\]: line 1 has 2 tokens, more than max_length=1"),
    ],
)
def test_evaluate_and_score_refuse(trained, options, error, message):
    for name in ("evaluate", "score"):
        if name == "evaluate" or not {"metrics", "beam"} & set(options):
            with pytest.raises(error, match=rf"^Seq2Seq\.{name}: {message}$"):
                getattr(trained, name)(PAIRS, **options)


def test_models_without_attention_have_nothing_to_copy_from():
    model = tiny(attention="none")
    model.build(PAIRS)
    for options, what in (({"unknown": "copy"}, "unknown='copy'"), ({"coverage_penalty": 0.1}, "coverage_penalty")):
        with pytest.raises(ValueError, match=f"Seq2Seq.translate: {what} needs a model with attention"):
            model.translate(["eins"], **options)
    assert model.translations(["eins"])[0][0].attention is None


def test_before_and_after_the_vocabularies(trained):
    for call in (
        lambda model: model.translate(["a"]),
        lambda model: model.evaluate(PAIRS),
        lambda model: model.score(PAIRS),
    ):
        with pytest.raises(RuntimeError, match="the model has no vocabularies yet: call fit"):
            call(tiny())
    with pytest.raises(RuntimeError, match="the vocabularies are there already"):
        trained.build(PAIRS)
    for metrics in ("bleu", 3):
        with pytest.raises(TypeError, match=r"Seq2Seq\.evaluate: metrics must be a list of names, got (str|int)"):
            trained.evaluate(PAIRS, metrics=metrics)
    with pytest.raises(TypeError, match=r"Seq2Seq\.translate: options must be some of .*, got 'n_best'"):
        trained.translate(["eins"], 2, n_best=2)


def test_weights_that_are_no_numbers(trained, tmp_path):
    trained.save(tmp_path)
    model = Seq2Seq.load(tmp_path)
    model.parameters[0]["weight"][...] = np.nan
    with pytest.raises(FloatingPointError, match=r"Seq2Seq\.translate: the model's outputs are not finite"):
        model.translate(["eins"])
