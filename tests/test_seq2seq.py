"""Seq2Seq as its users see it: fit, translate, evaluate, save and resume, and every refusal."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastrnn.models import LanguageModel, Seq2Seq, Translation
from pair_models import check_files
from tiny_model import Reporter

WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five"}
SOURCE = [f"{a} {b}" for a in WORDS for b in WORDS] + list(WORDS) + [""]
TARGET = [" ".join(WORDS[word] for word in line.split()) for line in SOURCE]
PAIRS = (SOURCE, TARGET)
RUN = {"batch_size": 8, "lr": 0.02, "progress": False}


def tiny(**options) -> Seq2Seq:
    return Seq2Seq(**{"embedding": 12, "hidden": 24, "seed": 1} | options)


@pytest.fixture(scope="module")
def trained() -> Seq2Seq:
    model = tiny(bidirectional=True)
    model.fit(PAIRS, epochs=40, **RUN)
    return model


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "none", "reverse": True, "layers": 2, "hidden": 48},
        {"attention": "dot", "cell": "gru", "tie": True, "embedding": 24},
        {"attention": "additive", "input_feeding": True},
        {"attention": "general", "bidirectional": True, "skip": True, "layers": 2},
        {"src_level": "char", "tgt_level": "word", "bidirectional": True},
    ],
    ids=str,
)
def test_learns_a_task(options):
    model = tiny(**options)
    history = model.fit(PAIRS, PAIRS, epochs=40, metric="exact", **RUN)
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert max(record["valid_exact"] for record in history) > 0.9
    assert [record["epoch"] for record in history] == list(range(1, 41))
    assert model.num_parameters == sum(array.size for group in model.parameters for array in group.values())


def test_options_of_training():
    model = tiny(dropout=0.1)
    history = model.fit(
        PAIRS, PAIRS, epochs=3, label_smoothing=0.1, sampling=0.5, max_tokens=20, optimizer="sgd", momentum=0.5,
        average=2, schedule="plateau", patience=9, sample_every=5, **RUN,
    )  # fmt: skip
    assert len(history) == 3
    assert {"valid_loss", "valid_perplexity", "clipped", "tokens_per_second"} <= set(history[0])


def test_the_seed_decides():
    models = [tiny(seed=seed, dropout=0.2) for seed in (5, 5, 6)]
    for model in models:
        model.fit(PAIRS, epochs=2, sampling=0.3, **RUN)
    one, same, other = (model.state_dict() for model in models)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    drawn = [models[0].translate(SOURCE, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_files_and_lists_are_the_same(tmp_path):
    paths = tuple(tmp_path / name for name in ("source", "target"))
    for path, lines in zip(paths, PAIRS, strict=True):
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    models = [tiny(), tiny()]
    models[0].fit(PAIRS, epochs=1, **RUN)
    models[1].fit(paths, epochs=1, **RUN)
    one, other = (model.state_dict() for model in models)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert models[0].evaluate(PAIRS) == models[1].evaluate(paths)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_translations(trained):
    lines = ["zwei drei", "", "vier", "  ", "eins fünf"]
    for beam in (1, 4):
        assert trained.translate(lines, beam) == ["two three", "", "four", "", "one five"]
    found = trained.translations(lines, beam=4, n_best=3)
    for line, each in zip(lines, found, strict=True):
        assert all(isinstance(one, Translation) for one in each)
        assert [one.score for one in each] == sorted((one.score for one in each), reverse=True)
        for one in each:
            assert one.source == line.split()
            assert one.text == " ".join(one.tokens)
            if one.source:
                assert one.attention.shape == (len(one.tokens), len(one.source) + 1)
                assert_allclose(one.attention.sum(axis=1), 1.0, rtol=1e-5)
                assert one.score == pytest.approx(one.log_p / (len(one.tokens) + 1), rel=1e-5)
                assert trained.score(([line], [one.text])) == pytest.approx(one.log_p, rel=1e-4)
    assert found[1] == [Translation("", [], [], 0.0, 0.0, None)]
    assert trained.translate([]) == []
    for size in (1, 2):
        assert trained.translate(SOURCE, 2, batch_size=size) == trained.translate(SOURCE, 2)


def test_evaluate_and_score(trained):
    scores = trained.score(PAIRS)
    figures = trained.evaluate(PAIRS, metrics=["wer", "exact"], beam=2)
    tokens = sum(len(line.split()) + 1 for line in TARGET)
    assert figures["tokens"] == tokens
    assert figures["loss"] == pytest.approx(-scores.sum() / tokens)
    assert figures["exact"] > 0.9
    assert figures["wer"] < 0.1
    assert trained.evaluate((SOURCE, TARGET[::-1]), metrics=["exact"])["exact"] < 0.5


def test_attention_is_in_the_order_of_the_line():
    """A model that reads from the end attends to the same words."""
    model = tiny(reverse=True)
    model.fit(PAIRS, epochs=40, **RUN)
    lines = [f"{a} {b}" for a in WORDS for b in WORDS if a != b]
    first = [each[0].attention[0, :2].argmax() for each in model.translations(lines)]
    steps = model._steps(*model._sentences("t", "source", lines, lines, 9).batch(np.arange(len(lines))))
    steps.step(np.full(len(lines), model._ends["target"]))
    assert first == [1 - place for place in steps.weights[:, :2].argmax(axis=1)]


def test_unknown_tokens(trained):
    rare = (["a b", "b a", "b", "a"] * 8 + ["c"], ["x y", "y x", "y", "x"] * 8 + ["z"])
    model = tiny(min_frequency=2, attention="dot")
    model.fit(rare, epochs=30, **RUN)
    bias = model.parameters[-1]["bias"]
    bias[0] += 50.0  # the model wants to write nothing else
    limit = {"max_ratio": 0.0}
    assert model.translate(["a b"], unknown="keep", **limit) == [" ".join(["<unk>"] * 10)]
    assert "<unk>" not in model.translate(["a b"], **limit)[0]
    (copied,) = model.translations(["b c a"], unknown="copy", **limit)[0]
    assert copied.tokens == [["b", "c", "a"][place] for place in copied.attention[:, :-1].argmax(axis=1)]
    assert copied.text == " ".join(copied.tokens)
    assert copied.source == ["b", "c", "a"]


def test_what_is_not_written_keeps_its_probability():
    """An output without unknown tokens has the log p that the model gives it, also where it wants one."""
    model = tiny(min_frequency=3)
    model.fit((["a", "b", "a b"] * 3 + ["c"] * 2, ["x", "y", "x y"] * 3 + ["z", "w"]), epochs=15, **RUN)
    model.parameters[-1]["bias"][0] += 3.0
    for beam in (1, 3):
        for line, each in zip(["c", "a c"], model.translations(["c", "a c"], beam, beam), strict=True):
            for one in each:
                assert model.score(([line], [one.text])) == pytest.approx(one.log_p, rel=1e-4)
                assert "<unk>" not in one.tokens


def test_the_end_written_as_a_word_is_an_unknown_one():
    model = tiny()
    model.build(PAIRS)
    pairs = (["eins <eos> zwei"], ["one <eos> two"])
    assert model.score(pairs) == model.score((["eins <unk> zwei"], ["one <unk> two"]))


def test_blanks_make_no_answer_wrong(trained):
    blank = [f"  {line.replace(' ', '   ')} " for line in TARGET]
    assert trained.evaluate((SOURCE, blank), metrics=["exact"]) == trained.evaluate(PAIRS, metrics=["exact"])


def test_an_end_is_a_symbol_however_few_lines_there_are():
    model = tiny(level="char", min_frequency=5)
    model.build((["aaaaabbbbbc"], ["aaaaad"]))
    assert [len(vocabulary) for vocabulary in model.vocabularies.values()] == [4, 3]  # <unk>, line break, letters


def test_weights_of_steps_do_not_pile_up():
    for tie in (False, True):
        model = tiny(tie=tie, embedding=24)
        model.fit(PAIRS, epochs=2, **RUN)
        assert all(len(embed._written) <= 1 for embed in (model._encoder.embed, model._decoder.embed))


@pytest.mark.parametrize("level", ["char", "bpe"])
def test_an_output_is_one_line(level):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    model = tiny(level=level, vocab_size=300)
    lines = ["a ", "b", "", "", "a  "] * 20  # so that blanks and line breaks become one token
    model.fit((lines, lines), epochs=1, **RUN)
    texts = model.translate(["a", "b a"] * 20, temperature=5.0, seed=0)
    assert not any("\n" in text for text in texts)
    assert any(texts)


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
    monkeypatch.setattr(model, "_figures", lambda *args: {"loss": 1.0, "perplexity": 2.0, "exact": next(figures)})
    history = model.fit(PAIRS, PAIRS, epochs=9, metric="exact", patience=2, checkpoint=tmp_path, **RUN)
    assert [record["valid_exact"] for record in history] == [0.1, 0.7, 0.3, 0.2]
    assert len(Seq2Seq.load(tmp_path / "best").history) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("source"), "vocabulary must have a level"),
        (lambda data: data["target"].update(level="char"), "CharVocabulary: symbols must be"),
        (lambda data: data["config"].update(hidden=25), "must have shape"),
        (lambda data: data["config"].update(attention="dot", bidirectional=True), "use 'general'"),
    ],
)
def test_changed_checkpoints(trained, tmp_path, change, message):
    trained.save(tmp_path)
    path = tmp_path / "model.json"
    data = json.loads(path.read_text())
    del data["sha256"]
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as caught:
        Seq2Seq.load(tmp_path)
    assert str(caught.value).startswith(f"Seq2Seq.load: {tmp_path} is damaged: ")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_whose_vocabulary_has_no_end_of_a_line(tmp_path):
    model = tiny(level="char")
    model.fit((["ab", "b"], ["a", "ba"]), epochs=1, **RUN)
    model.save(tmp_path)
    path = tmp_path / "model.json"
    data = json.loads(path.read_text())
    del data["sha256"]
    data["target"]["symbols"] = data["target"]["symbols"].replace("\n", "")
    path.write_text(json.dumps(data))
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
        (PAIRS, {"max_length": 1}, ValueError, "source: line 1 has 2 tokens, more than max_length=1"),
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


def test_files_are_named_with_their_line(tmp_path):
    source, target = tmp_path / "a.src", tmp_path / "a.tgt"
    source.write_bytes(b"a\nb c d\n")
    target.write_bytes(b"a\nb\nc\n")
    with pytest.raises(ValueError, match=f"{source} and {target} must have equally many lines, got 2 and 3"):
        tiny().fit((source, target), progress=False)
    target.write_bytes(b"a\nb\n")
    with pytest.raises(ValueError, match=f"^{source}: line 2 has 3 tokens, more than max_length=2$"):
        tiny().fit((source, target), max_length=2, progress=False)
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
        ({"max_length": 1}, ValueError, "lines: line 1 has 2 tokens, more than max_length=1|source: line 1 has 2"),
        ({"depth": 1}, TypeError, r"Seq2Seq\.translations: options must be some of length_penalty, .*, got 'depth'"),
    ],
)
def test_translations_refuse(trained, options, error, message):
    with pytest.raises(error, match=message):
        trained.translations(["eins zwei"], **options)


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
