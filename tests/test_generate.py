"""generate: drawing, penalties, stop strings, streams of text and beam search, against slow and plain references."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrnn.models import LanguageModel, NgramLanguageModel, decoding
from fastrnn.models.decoding import RepetitionPenalty, Sampler, Writer, log_softmax
from fastrnn.models.text_model import TextModel
from fastrnn.models.vocabulary import VOCABULARIES
from tiny_model import TEXT, tiny, tiny_trained


@pytest.fixture(scope="module")
def trained() -> LanguageModel:
    return tiny_trained()


def untrained(text, **options) -> LanguageModel:
    """Weights far enough from 0 that what is read decides what is written."""
    model = tiny(**{"dtype": "float64", "seed": 1, **options})
    model.build(text)
    rng = np.random.default_rng(model.seed)
    for group in model.parameters:
        for array in group.values():
            array[...] = rng.standard_normal(array.shape)
    return model


class Scripted(TextModel):
    """Writes given ids whatever it reads; ``drawn`` of them have been asked for. Without ids all are as probable."""

    num_parameters = nbytes = 0
    _nats = _contents = _set_contents = fit = None

    def __init__(self, vocabulary, ids=()):
        super().__init__(vocabulary.level, 0, 1)
        self.vocabulary, self.ids, self.drawn = vocabulary, ids, 0

    def _decoder(self, ids):
        return self

    def step(self, tokens):
        logits = np.zeros((len(tokens), len(self.vocabulary)))
        if self.ids:
            logits[:, self.ids[self.drawn]] = 1.0
            self.drawn += 1
        return logits

    def select(self, rows):
        pass


def cut_at(text, stops):
    """Up to the stop string that ends first, the longest where several do."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_by_seed(trained):
    text = trained.generate("hello", 40, seed=1)
    assert text == trained.generate("hello", 40, seed=1) != trained.generate("hello", 40, seed=2)
    assert len(text) == 40
    assert set(text) <= set(TEXT)
    assert trained.generate("hello", 40) != trained.generate("hello", 40)
    assert trained.generate("hello", 0) == ""
    assert trained.generate(max_new_tokens=5, seed=0) == trained.generate(" ", 5, seed=0)  # no line break: first symbol


def test_agrees_with_score(trained):
    """The packed one-step path chooses what the whole-sequence path finds most probable."""
    prompt = "hello wor"
    text = prompt + trained.generate(prompt, 25, temperature=0.0)
    for end in range(len(prompt), len(text)):
        best = max(trained.vocabulary.symbols, key=lambda symbol: trained.score(text[:end] + symbol)[-1])
        assert text[end] == best
    greedy = text[len(prompt) :]
    assert greedy == trained.generate(prompt, 25, top_k=1) == trained.generate(prompt, 25, top_p=1e-9)
    assert greedy == trained.generate(prompt, 25, temperature=1e-6) == trained.generate(prompt, 25, beam_size=1)


def test_draws_with_the_probabilities_of_score(trained):
    draws, symbols = 1500, trained.vocabulary.symbols
    p = np.exp([trained.score("how " + symbol)[-1] for symbol in symbols])
    p /= p.sum()  # an unknown symbol is never drawn
    counts = np.zeros(len(symbols))
    for seed in range(draws):
        counts[symbols.index(trained.generate("how ", 1, seed=seed))] += 1
    assert (np.abs(counts / draws - p) <= 5 * np.sqrt(p * (1 - p) / draws)).all()


def test_sampler_cuts_the_distribution():
    logits = np.log(np.array([0.05, 0.4, 0.25, 0.3, 0.0]), where=[1, 1, 1, 1, 0], out=np.full(5, -np.inf))

    def frequencies(**options):
        rng, sampler = np.random.default_rng(0), Sampler(**options)
        return np.bincount([sampler.draw(logits, rng) for _ in range(4000)], minlength=5) / 4000

    close = {"abs": 0.03}
    assert frequencies() == pytest.approx([0.05, 0.4, 0.25, 0.3, 0], **close)
    assert frequencies(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0], **close)
    assert frequencies(top_k=99) == pytest.approx([0.05, 0.4, 0.25, 0.3, 0], **close)
    assert frequencies(top_p=0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0], **close)
    assert frequencies(top_p=0.72) == pytest.approx([0, 0.4 / 0.95, 0.25 / 0.95, 0.3 / 0.95, 0], **close)
    assert frequencies(top_p=1.0) == pytest.approx([0.05, 0.4, 0.25, 0.3, 0], **close)
    squared = np.array([0.05, 0.4, 0.25, 0.3, 0]) ** 2
    assert frequencies(temperature=0.5) == pytest.approx(squared / squared.sum(), **close)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert Sampler(temperature=1e-300).draw(logits[:4], np.random.default_rng(0)) == 1


@pytest.mark.parametrize("size", [1, 2, 9, 700])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 6, 400, 701])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.5, 0.97, 1.0])
def test_sampler_draws_by_rank(size, temperature, top_k, top_p):
    """The same tokens for the same numbers as ranking all of them, equal ones by their ids."""
    rng = np.random.default_rng(size)
    ties, ones = rng.integers(-3, 3, size).astype("d"), np.zeros(size)
    holes = np.where(rng.random(size) < 0.5, -np.inf, rng.standard_normal(size).astype("f"))
    holes[rng.integers(size)] = 1.0
    for logits in (rng.standard_normal(size), rng.standard_normal(size) * 300, ties, ones, holes):
        weights = np.exp((logits - logits.max()) / temperature)
        ranks = sorted(range(size), key=lambda i: (-weights[i], i))[:top_k]
        if top_k is None and top_p is None:
            ranks = list(range(size))
        shares = weights[ranks] / weights[ranks].sum()
        if top_p is not None:
            ranks = ranks[: 1 + int((np.cumsum(shares) < top_p).sum())]
        edges = np.cumsum(weights[ranks])
        sampler = Sampler(temperature, top_k, top_p)
        for seed in range(10):
            drawn = np.random.default_rng(seed).random() * edges[-1]
            token = sampler.draw(logits, np.random.default_rng(seed))
            assert token == ranks[int((edges <= drawn).sum())]
            assert logits[token] > -np.inf


class Fixed:
    """In the place of a generator."""

    def __init__(self, number):
        self._number = number

    def random(self):
        return self._number


@pytest.mark.parametrize("number", [0.0, 0.5, 1.0 - 2.0**-53])
@given(weights=st.lists(st.one_of(st.just(0.0), st.floats(0, 1)), max_size=20), data=st.data())
def test_what_has_no_weight_is_never_drawn(number, weights, data):
    """The first and the last of the numbers that ``random`` gives, too."""
    weights.insert(data.draw(st.integers(0, len(weights))), 1.0)
    assert weights[decoding._draw(np.array(weights), Fixed(number))] > 0.0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.integers(1, 10))
def test_largest(values, count):
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert decoding._largest(np.array(values, float), count).tolist() == expected


def test_unknown_symbols_are_never_written(trained):
    assert "\ufffd" not in trained.generate("☃", 200, seed=0, temperature=5.0)
    model = untrained("abc")
    model.output.parameters["bias"][0] = 50.0
    for options in ({"seed": 0}, {"temperature": 0}, {"beam_size": 4}):
        text = model.generate("a☃", 9, **options)
        assert len(text) == 9
        assert set(text) <= set("abc")


# -- repetition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.3, 0.3])
def test_repetition_penalty(penalty):
    model = untrained(TEXT)
    ids = list(model.vocabulary.encode("he"))
    for _ in range(30):
        logits = model._decoder(np.array(ids, np.int32)).step(np.array(ids[-1:]))[0]
        for token in set(ids):
            logits[token] *= 1 / penalty if logits[token] > 0 else penalty
        ids.append(1 + int(logits[1:].argmax()))
    expected = model.vocabulary.decode(ids[2:])
    for options in ({"temperature": 0}, {"top_k": 1}, {"beam_size": 1}):
        assert model.generate("he", 30, repetition_penalty=penalty, **options) == expected
    assert model.generate("he", 30, temperature=0) != expected


@pytest.mark.parametrize("options", [{"temperature": 0}, {"beam_size": 1}], ids=str)
def test_an_empty_prompt_has_no_tokens_to_penalize(options):
    model = NgramLanguageModel(seed=0)
    model.fit("aaab" * 100, progress=False)
    for penalty in (0.02, 1.0, 50.0):
        assert model.generate("", 1, repetition_penalty=penalty, **options) == "a"
    assert model.generate("a", 1, repetition_penalty=50.0, **options) == "b"


@pytest.mark.parametrize("prompt", [[2, 3], []], ids=str)
def test_repetition_penalty_follows_its_rows(prompt):
    """The first token ends the prompt; for an empty one it is none of the tokens that count."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((9, 6, 7))

    class Given:
        def step(self, tokens):
            return logits[step, : len(tokens)].astype("f")

        def select(self, rows):
            pass

    step, rows = 0, [prompt]
    decoder = RepetitionPenalty(Given(), 2.0, np.array(prompt, int), 7)
    for step in range(9):
        tokens = rng.integers(0, 7, len(rows)) if step else np.array([3])
        if step:
            rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        expected = logits[step, : len(rows)].astype("f").astype("d")
        for row, read in zip(expected, rows, strict=True):
            for token in set(read):
                row[token] *= 0.5 if row[token] > 0 else 2.0
        np.testing.assert_array_equal(decoder.step(tokens), expected)
        kept = rng.integers(0, len(rows), 6)
        decoder.select(kept)
        rows = [rows[row] for row in kept]


# -- stop strings and streams ------------------------------------------------------------------------------------------

WRITTEN = "the cat, the öl\n\nthe € 𝄞𝄞 \ufffd\ufffd end\n"


@functools.cache
def vocabulary_of(level):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    return VOCABULARIES[level].of_text(WRITTEN)


@pytest.mark.parametrize("level", VOCABULARIES)
@given(data=st.data())
def test_streams_and_stop_strings(level, data):
    """With any ids, those that are no whole characters too; pieces together are the text, and no token is wasted."""
    vocabulary = vocabulary_of(level)
    ids = data.draw(st.lists(st.integers(1, len(vocabulary) - 1), max_size=30))
    if level == "bpe" and data.draw(st.booleans()):  # whole characters
        ids = vocabulary.encode("".join(data.draw(st.lists(st.sampled_from(WRITTEN), max_size=15)))).tolist()
    prompt = data.draw(st.sampled_from(["", "the", "the ", "x \t ", " ", "€", "x\n", "x\n "]))
    last = [vocabulary.start, *vocabulary.encode(prompt)][-1]

    def text_of(ids):
        new = vocabulary.decode([last, *ids])[len(vocabulary.decode([last])) :]
        return new.removeprefix(" ") if level == "word" and prompt.endswith(" ") else new

    whole = text_of(ids)
    spans = st.tuples(st.integers(0, len(whole)), st.integers(1, 5)).map(lambda s: whole[s[0] : s[0] + s[1]])
    stops = data.draw(st.lists(st.one_of(spans, st.text("the a\n€", min_size=1, max_size=3)).filter(len), max_size=3))
    model, streamed = Scripted(vocabulary, ids), Scripted(vocabulary, ids)
    text = model.generate(prompt, len(ids), temperature=0, stop=stops)
    assert text == cut_at(whole, stops)
    pieces = list(streamed.generate(prompt, len(ids), temperature=0, stop=stops, stream=True))
    assert "".join(pieces) == text
    assert all(pieces)
    assert streamed.drawn == model.drawn
    if text == whole:
        assert model.drawn == len(ids)
    else:
        assert cut_at(text_of(ids[: model.drawn]), stops) == text


def pieces(level, text, last=None, **options):
    ids = vocabulary_of(level).encode(text).tolist()[:last]
    return list(Scripted(vocabulary_of(level), ids).generate("the", len(ids), temperature=0, stream=True, **options))


def test_pieces_come_as_soon_as_they_are_certain():
    assert pieces("char", "the end") == list("the end")
    assert pieces("word", "cat, end\nthe") == [" cat,", " end", "\n", "the"]
    assert pieces("char", "the ten", stop="text") == ["th", "e", " ", "ten"]
    assert pieces("char", "the tent", stop=["then", "nt"]) == ["the ", "te"]
    assert pieces("word", "the cat, end", stop="at") == [" the", " c"]


def test_characters_come_whole():
    assert pieces("bpe", "th ☃€") == ["t", "h", " ", "☃", "€"]  # three bytes each
    assert pieces("bpe", "th ☃€", -1) == ["t", "h", " ", "☃", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("cat, end", (), ["cat,", " end"]),
        ("\ncat, \n", (), ["\n", "cat,", "\n"]),
        ("\ufffd\ufffd", (), ["\ufffd\ufffd"]),
        ("\ufffd\ufffd end", (), ["\ufffd\ufffd end"]),
        ("", (), []),
        ("cat, the end", (" cat", " t"), ["cat,"]),
    ],
)
def test_a_blank_that_is_there_is_not_written_again(text, stops, expected):
    vocabulary = vocabulary_of("word")
    writer = Writer(vocabulary, int(vocabulary.encode("the ")[-1]), stops, spaced=True)
    assert list(decoding.write(vocabulary.encode(text).tolist(), writer)) == expected


@pytest.mark.parametrize("options", [{"temperature": 0}, {"beam_size": 1}], ids=str)
@pytest.mark.parametrize(
    ("level", "prompt", "expected"),
    [
        ("word", "the", " cat,\nend"),
        ("word", "the ", "cat,\nend"),
        ("word", "unknown \t", "cat,\nend"),
        ("word", "the\n ", "cat,\nend"),
        ("word", "  ", "cat,\nend"),
        ("char", "the ", " cat,\nend"),
        ("char", "the\t", " cat,\nend"),  # an unknown character, not a blank between tokens
        ("bpe", "the ", " cat,\nend"),
    ],
)
def test_prompts_that_end_with_blanks(level, prompt, expected, options):
    ids = vocabulary_of(level).encode(" cat,\nend").tolist()
    assert Scripted(vocabulary_of(level), ids).generate(prompt, len(ids), **options) == expected


def test_a_stop_string_lies_in_the_new_text(trained):
    whole = trained.generate("hello wor", 30, temperature=0)
    across = "r" + whole[0]
    assert trained.generate("hello wor", 30, temperature=0, stop=across) == whole.split(across)[0] != ""
    assert trained.generate("hello wor", 30, temperature=0, stop=whole[0]) == ""


def test_a_stream_draws_what_it_is_asked_for():
    one, other = untrained(TEXT), untrained(TEXT)
    assert "".join(itertools.islice(one.generate("he", 40, stream=True), 7)) == other.generate("he", 7)
    assert one.generate("he", 20) == other.generate("he", 20)
    assert one.generate("he", 20, seed=2) == "".join(other.generate("he", 20, seed=2, stream=True))


# -- beam search -------------------------------------------------------------------------------------------------------


def every_text(model, prompt, count, stops):
    """All texts of that many tokens or up to a stop string: (text, log p, tokens), by ``score``, in order of ids."""
    alphabet = model.vocabulary.symbols
    for symbols in itertools.product(alphabet, repeat=count):
        text = "".join(symbols)
        ends = [end for end in range(1, count + 1) if cut_at(text[:end], stops) != text[:end]]
        used = text[: ends[0]] if ends else text
        if text == used + alphabet[0] * (count - len(used)):  # each once
            yield cut_at(used, stops), model.score(prompt + used)[len(prompt) - 1 :].sum(), len(used)


@pytest.mark.parametrize("stops", [(), ("b",), ("ca", "bb")], ids=str)
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
def test_a_full_beam_finds_the_best_of_all_texts(stops, length_penalty):
    for seed in range(4):
        model = untrained("abc", seed=seed)
        found = list(every_text(model, "ab", 4, stops))
        best = max(found, key=lambda one: one[1] / one[2] ** length_penalty)[0]
        text = model.generate("ab", 4, beam_size=81, stop=stops, length_penalty=length_penalty)
        assert text == best


def reference_beam(model, prompt, count, size):
    """Every beam reads its text anew."""
    ids = model.vocabulary.encode(prompt).tolist()
    beams = [(0.0, [])]
    for _ in range(count):
        grown = []
        for log_p, new in beams:
            read = np.array([*ids, *new], np.int32)
            scores = log_softmax(model._decoder(read).step(read[-1:]))[0]
            grown += [(log_p + scores[token], [*new, token]) for token in range(1, len(scores))]
        beams = sorted(grown, key=lambda beam: -beam[0])[:size]
    return model.vocabulary.decode([ids[-1], *beams[0][1]])[len(model.vocabulary.decode(ids[-1:])) :]


@pytest.mark.parametrize("options", [{"cell": "lstm", "layers": 2}, {"cell": "gru"}, {"level": "word"}], ids=str)
def test_beam_search_on_the_packed_path(options):
    differs = 0
    for seed in range(5):
        model = untrained(TEXT, seed=seed, **options)
        found = [model.generate("how are", 12, beam_size=size) for size in (1, 2, 5)]
        assert found == [reference_beam(model, "how are", 12, size) for size in (1, 2, 5)]
        assert found[0] == model.generate("how are", 12, temperature=0)
        differs += found[0] != found[2]
    assert differs  # a wider beam does find more


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngrams_read_the_tokens_of_each_row(order):
    """Rows that share what they have read, and rows that do not."""
    model, rng = NgramLanguageModel(order=order, seed=0), np.random.default_rng(order)
    model.fit("the cat saw the dog. the end. " * 3, progress=False)
    ids = model.vocabulary.encode("the")
    decoder, rows = model._decoder(ids), [ids[:-1].tolist()]
    tokens = ids[-1:]
    for count in (1, 5, 9, 3, 4):
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
        expected = np.log([model.ngrams.distribution(row) for row in rows])
        logits = decoder.step(tokens)
        np.testing.assert_array_equal(logits, expected)
        logits[:] = np.nan  # they are free to be changed
        kept = rng.integers(0, len(rows), count)
        decoder.select(kept)
        rows, tokens = [rows[row] for row in kept], rng.integers(1, 4, count)


def test_beam_search_ends_with_a_stop_string(trained):
    text = trained.generate("hello", 60, beam_size=3, stop=[".", "?"])
    assert text
    assert not {".", "?"} & set(text)
    greedy = trained.generate("hello", 60, temperature=0, stop=[".", "?"])
    assert trained.generate("hello", 60, beam_size=1, stop=[".", "?"]) == greedy
    assert trained.generate("hello", 0, beam_size=3) == ""


def test_equal_beams_keep_their_order():
    vocabulary = vocabulary_of("char")
    for size in (1, 2, 50):
        assert Scripted(vocabulary).generate("the", 5, beam_size=size) == 5 * vocabulary.symbols[0]


def test_log_softmax():
    logits = np.random.default_rng(0).standard_normal((3, 5)).astype("f") * 300
    logits[1, 2] = -np.inf
    scores = log_softmax(logits)
    assert scores.dtype == np.float64
    assert scores[1, 2] == -np.inf
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0, rtol=1e-14)
    finite = np.isfinite(logits[1])
    np.testing.assert_allclose(np.diff(scores[1][finite]), np.diff(logits[1][finite].astype("d")), rtol=1e-12)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"beam_size": 2}, {"repetition_penalty": 2.0}], ids=str)
def test_weights_that_are_not_finite_are_not_hidden(value, options):
    model = untrained("abc")
    model.output.parameters["bias"][2] = value
    with pytest.raises(FloatingPointError, match=r"^LanguageModel\.generate: .* not finite"):
        model.generate("ab", 3, **options)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"prompt": None}, TypeError, "prompt must be a str, got NoneType"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be an integer >= 0, got -1"),
        ({"temperature": -0.1}, ValueError, "temperature must be a finite number >= 0, got -0.1"),
        ({"top_k": 0}, ValueError, "top_k must be an integer >= 1, got 0"),
        ({"top_p": 1.1}, ValueError, "top_p must be a number between 0 and 1, got 1.1"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1, got 0.0"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be a finite number > 0, got 0"),
        ({"repetition_penalty": math.inf}, ValueError, "repetition_penalty must be a finite number > 0, got inf"),
        ({"stop": 3}, TypeError, "stop must be a str or a list of them, got 3"),
        ({"stop": ["a", b"b"]}, TypeError, r"stop must be a str or a list of them, got \['a', b'b'\]"),
        ({"stop": ""}, ValueError, "stop must not be empty, got ''"),
        ({"stop": ["a", ""]}, ValueError, r"stop must not be empty, got \['a', ''\]"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        (
            {"length_penalty": 0.5},
            ValueError,
            "length_penalty is for beam search, got length_penalty=0.5 and beam_size",
        ),
        ({"length_penalty": 2}, ValueError, "length_penalty must be a number between 0 and 1, got 2"),
        ({"beam_size": 0}, ValueError, "beam_size must be an integer >= 1, got 0"),
        ({"beam_size": 2.0}, TypeError, "beam_size must be an integer >= 1, got 2.0"),
        ({"beam_size": 2, "temperature": 0}, ValueError, "beam search has no temperature, got temperature=0.0 and"),
        ({"beam_size": 2, "top_k": 3}, ValueError, "beam search has no top_k, got top_k=3 and beam_size=2"),
        ({"beam_size": 2, "top_p": 0.5}, ValueError, "beam search has no top_p, got top_p=0.5 and beam_size=2"),
        ({"beam_size": 2, "seed": 0}, ValueError, "beam search has no seed, got seed=0 and beam_size=2"),
    ],
)
def test_refuses(trained, options, kind, message, stream):
    """A stream too refuses at the call."""
    with pytest.raises(kind, match=rf"^LanguageModel\.generate: {message}"):
        trained.generate(**options, stream=stream)


def test_refuses_streams_of(trained):
    with pytest.raises(ValueError, match=r"generate: beam search has no stream, got stream=True and beam_size=2"):
        trained.generate(beam_size=2, stream=True)
    with pytest.raises(TypeError, match=r"generate: stream must be True or False, got 1"):
        trained.generate(stream=1)
    with pytest.raises(RuntimeError, match="the model has no vocabulary yet: call fit"):
        tiny().generate("text", stream=True)
