"""What all language models share: a vocabulary, and everything that follows from the probability of the next token."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from ..checks import check_choice, check_flag, check_probability, check_real, check_size
from .decoding import (
    RepetitionPenalty,
    Sampler,
    StepDecoder,
    Writer,
    beam_search,
    check_stops,
    not_finite,
    sample,
    write,
)
from .model import Model, perplexity
from .tokens import check_regular, encode_pieces, read_pieces, tokenize_file
from .vocabulary import UNKNOWN, VOCABULARIES, BpeVocabulary, Vocabulary, leading

Text = str | os.PathLike[str]  # itself, or the file that holds it
_VOCAB_SIZE = 8192


class TextModel(Model):
    """A language model from text to text.

    A kind of model says how it predicts: all tokens of a text (``_nats``) or one after the other (``_decoder``).
    """

    _VOCABULARIES = ("vocabulary",)

    def __init__(self, level: str, seed: int | None, min_frequency: int = 1, vocab_size: int = _VOCAB_SIZE) -> None:
        where = type(self).__name__
        self.level = check_choice(where, "level", level, VOCABULARIES)
        super().__init__(seed)
        self.min_frequency = check_size(where, "min_frequency", min_frequency)
        self.vocab_size = check_size(where, "vocab_size", vocab_size, low=BpeVocabulary.LEAST)
        self.vocabulary: Vocabulary | None = None

    @property
    def normalized(self) -> bool:
        """Whether the probabilities of all next tokens sum to 1."""
        return True

    @abstractmethod
    def fit(
        self,
        train: Text,
        valid: Text | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Any = True,
    ) -> list[dict[str, Any]]:
        """Learn from a text; returns the records of the run, also kept in ``history``."""

    # -- vocabulary ----------------------------------------------------------------------------------------------------

    def build(self, text: Text) -> Vocabulary:
        """Take the vocabulary of a text, or of a file of text, and make the weights that depend on it.

        ``fit`` does so by itself. Returns the vocabulary.
        """
        where = f"{type(self).__name__}.build"
        if self.vocabulary is not None:
            raise RuntimeError(f"{where}: the vocabulary is there already; make a new model for another one")
        self._check_text("build", "text", text, least=1)
        pieces = (text,) if isinstance(text, str) else read_pieces(text)
        if self.level == BpeVocabulary.level:
            return self._build(BpeVocabulary.of_pieces(pieces, self.min_frequency, self.vocab_size))
        return self._build(VOCABULARIES[self.level].of_pieces(pieces, self.min_frequency))

    def _build(self, vocabulary: Vocabulary) -> Vocabulary:
        self.vocabulary = vocabulary
        return vocabulary

    def _built(self, call: str) -> Vocabulary:
        if self.vocabulary is None:
            raise RuntimeError(
                f"{type(self).__name__}.{call}: the model has no vocabulary yet: call fit (or build) first"
            )
        return self.vocabulary

    def _vocabularies(self) -> dict[str, Vocabulary]:
        return {"vocabulary": self._built("save")}

    def _set_vocabularies(self, vocabularies: dict[str, Vocabulary]) -> None:
        vocabulary = vocabularies["vocabulary"]
        if vocabulary.level != self.level:
            raise ValueError(f"the vocabulary must be of level {self.level!r}, got {vocabulary.level!r}")
        self._build(vocabulary)

    def _check_text(self, call: str, name: str, text: Any, least: int, why: str = "") -> None:
        """What can be told of a text before there is a vocabulary; ``why`` it must have ``least`` tokens."""
        where = f"{type(self).__name__}.{call}"
        if isinstance(text, os.PathLike):
            check_regular(where, name, text)
            next(read_pieces(text))  # a file that cannot be read fails here
            return
        if not isinstance(text, str):
            raise TypeError(f"{where}: {name} must be a str or the path of a file, got {type(text).__name__}")
        self._check_count(call, name, text, least, why, VOCABULARIES[self.level].count(text))

    def _ids(
        self, call: str, name: str, text: Text, least: int, folder: str | os.PathLike[str] | None, why: str = ""
    ) -> np.ndarray:
        """A text as ids; those of a file are mapped, from ``folder`` where there is one."""
        if folder is None or isinstance(text, str):
            return self._encoded(call, name, text, least, why)[0]
        ids = tokenize_file(text, self._built(call), Path(folder, "tokens", f"{name}.ids"))
        self._check_count(call, name, text, least, why, len(ids))
        return ids

    def _encoded(self, call: str, name: str, text: Text, least: int, why: str = "") -> tuple[np.ndarray, int]:
        """A text as ids, and how many characters follow its first token. A file may be a pipe: it is read once."""
        vocabulary = self._built(call)
        if isinstance(text, os.PathLike):
            ids, characters = encode_pieces(read_pieces(text), vocabulary)
        else:
            self._check_text(call, name, text, least, why)
            ids, characters = vocabulary.encode(text), len(text) - leading(vocabulary, text)
        self._check_count(call, name, text, least, why, len(ids))
        return ids, characters

    def _check_count(self, call: str, name: str, text: Text, least: int, why: str, count: int) -> None:
        if count >= least:
            return
        if not isinstance(text, str):
            hint = f" in {os.fspath(text)}"
        else:
            hint = "; a file is given as a pathlib.Path" if os.path.exists(text) else ""
        raise ValueError(
            f"{type(self).__name__}.{call}: {name} must have at least {least} {VOCABULARIES[self.level].unit}{why}, "
            f"got {count}{hint}"
        )

    # -- prediction ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _nats(self, ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """-log p of each token after the first, in chunks (nats (t, B), valid (t, B)), from the streams of ``cut``."""

    @abstractmethod
    def _decoder(self, ids: np.ndarray) -> StepDecoder:
        """One row that has read all of ``ids``, of which there is at least one, but the last."""

    def evaluate(self, text: Text, *, batch_size: int = 1) -> dict[str, float | int]:
        """How well the model predicts a text, or a file of text.

        Every token but the first, which has nothing before it, is predicted from all those before it. With
        ``batch_size`` above 1 the text is cut into as many streams, each starting from nothing: faster, and
        slightly pessimistic. The tokens of a file are mapped into memory from a temporary one.

        Returns a dict: ``loss`` (nats per token), ``perplexity`` (exp(loss), at most 1e304), ``tokens`` (predicted
        tokens), ``bits_per_character``: loss * tokens / ln 2 / C, where C counts the characters of the text but those
        of the first token, which is not predicted, and the blanks before it. Unknown words count with their own
        characters; a character of several tokens belongs to the last of them.

        Raises:
            TypeError, ValueError: naming the argument. FloatingPointError: the weights hold NaN or infinity.
        """
        batch_size = check_size(f"{type(self).__name__}.evaluate", "batch_size", batch_size)
        ids, characters = self._encoded("evaluate", "text", text, 2)
        figures = self._figures(ids, batch_size)
        if not math.isfinite(figures["loss"]):
            raise not_finite(f"{type(self).__name__}.evaluate")
        return figures | {
            "tokens": len(ids) - 1,
            "bits_per_character": figures["loss"] * (len(ids) - 1) / math.log(2.0) / characters,
        }

    def _figures(self, ids: np.ndarray, batch_size: int) -> dict[str, float]:
        loss = self._mean_nats(ids, batch_size)
        return {"loss": loss, "perplexity": perplexity(loss)}

    def _mean_nats(self, ids: np.ndarray, batch_size: int) -> float:
        if not self.normalized:
            raise ValueError(
                f"{type(self).__name__}.evaluate: the scores of {self!r} sum to no probability: a perplexity needs one"
            )
        chunks = self._nats(ids, min(batch_size, len(ids) - 1))
        return sum(float(nats.sum(where=valid, dtype=np.float64)) for nats, valid in chunks) / (len(ids) - 1)

    def score(self, text: str) -> np.ndarray:
        """log p of each token of ``text`` but the first, in nats: float64, entry i for token i + 1. Errors are those of
        ``evaluate``."""
        ids = self._ids("score", "text", text, 2, None)
        nats = np.concatenate([nats[:, 0] for nats, _ in self._nats(ids, 1)]).astype(np.float64)
        if not np.isfinite(nats).all():
            raise not_finite(f"{type(self).__name__}.score")
        return -nats

    @overload
    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        beam_size: int | None = None,
        length_penalty: float = 0.0,
        seed: int | None = None,
        stream: Literal[False] = False,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        beam_size: int | None = None,
        length_penalty: float = 0.0,
        seed: int | None = None,
        stream: Literal[True],
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] | None = None,
        beam_size: int | None = None,
        length_penalty: float = 0.0,
        seed: int | None = None,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """A continuation of ``prompt`` (which is not part of the result), drawn, or found by beam search.

        Args:
            prompt: text to go on from; an empty one stands for the end of a line (or the first symbol, without one in
                the vocabulary).
            max_new_tokens: how many tokens, >= 0; unknown ones are never among them.
            temperature: divides the logits; below 1 plainer, 0 always the most probable token.
            top_k: draw from the k most probable tokens only.
            top_p: draw from the most probable tokens that together reach probability p, in (0, 1].
            repetition_penalty: divides the positive logits of the tokens of prompt and continuation, multiplies the
                negative ones; above 0, and above 1 against repetition.
            stop: a string, or several, before which the text ends. Where there are several, the one that ends first
                counts.
            beam_size: search for the most probable text instead of drawing: at each length this many stay, and a text
                ends with ``max_new_tokens`` or a stop string; 1 takes the most probable token each time.
            length_penalty: of the texts found, the one with the highest log p / tokens ** length_penalty is taken, in
                [0, 1]: 0 compares log p, 1 its mean. For texts that a stop string ends.
            seed: integer >= 0; None goes on with the model's own generator (started by its seed).
            stream: give an iterator of pieces of the text, each as soon as it is certain. Tokens are drawn when the
                next piece is asked for, also from the model's own generator.

        Raises:
            TypeError, ValueError: naming the argument, at the call also for a stream. FloatingPointError: the weights
                hold NaN or infinity.

        Sources: Keskar et al., "CTRL: a conditional transformer language model for controllable generation", 2019
        (repetition penalty); Holtzman et al., "The curious case of neural text degeneration", 2020 (top_p).

        Example:
            >>> from fastrnn.models import LanguageModel
            >>> model = LanguageModel(embedding=8, hidden=16, seed=1)
            >>> history = model.fit("hello world. " * 50, epochs=20, batch_size=4, bptt=16, lr=0.02, progress=False)
            >>> model.generate("hello", stop=".", temperature=0)
            ' world'
            >>> model.generate("hello", stop=".", beam_size=3)
            ' world'
            >>> for piece in model.generate("hello", 6, temperature=0, stream=True):
            ...     print(piece, end="")
             world
        """
        where = f"{type(self).__name__}.generate"
        vocabulary = self._built("generate")
        if not isinstance(prompt, str):
            raise TypeError(f"{where}: prompt must be a str, got {type(prompt).__name__}")
        count = check_size(where, "max_new_tokens", max_new_tokens, low=0)
        sampler = Sampler.checked(where, temperature, top_k, top_p)
        penalty = check_real(where, "repetition_penalty", repetition_penalty, above=True)
        stops = check_stops(where, stop)
        length_penalty = check_probability(where, "length_penalty", length_penalty)
        rng = self._sampling if seed is None else np.random.default_rng(check_size(where, "seed", seed, low=0))
        stream = check_flag(where, "stream", stream)
        if beam_size is not None:
            beam_size = check_size(where, "beam_size", beam_size)
            for name, given, default in (
                ("temperature", sampler.temperature, 1.0),
                ("top_k", top_k, None),
                ("top_p", top_p, None),
                ("seed", seed, None),
                ("stream", stream, False),
            ):
                if given != default:
                    raise ValueError(f"{where}: beam search has no {name}, got {name}={given} and {beam_size=}")
        elif length_penalty:
            raise ValueError(f"{where}: length_penalty is for beam search, got {length_penalty=} and {beam_size=}")
        own = vocabulary.encode(prompt)
        ids = own if len(own) else np.array([vocabulary.start], np.int32)
        spaced = sum(map(len, vocabulary.pieces(prompt))) < len(prompt)  # it ends with blanks that no token stands for
        last, writer = int(ids[-1]), Writer(vocabulary, int(ids[-1]), stops, spaced)
        decoder = self._decoder(ids)
        if penalty != 1.0:
            decoder = RepetitionPenalty(decoder, penalty, own, len(vocabulary))
        if beam_size is not None:
            return beam_search(where, decoder, last, count, beam_size, length_penalty, writer, UNKNOWN)
        pieces = write(sample(where, decoder, last, count, sampler, rng, UNKNOWN), writer)
        return pieces if stream else "".join(pieces)


def cut(ids: np.ndarray, batch_size: int) -> tuple[_Streams, _Streams, np.ndarray]:
    """A text as streams side by side: inputs and targets (T, B), and how many targets each stream has, (B,).

    Stream b predicts tokens 1 + b T ... of ``ids``; the last streams may be shorter.
    """
    count = len(ids) - 1
    length = -(-count // batch_size)
    starts = length * np.arange(batch_size)
    return _Streams(ids, starts, length), _Streams(ids, starts + 1, length), np.clip(count - starts, 0, length)


class _Streams:
    """The ``length`` tokens from each of ``starts`` on, (T, B). Only slices of steps are in memory.

    Past the end of the text its last token stands again.
    """

    def __init__(self, ids: np.ndarray, starts: np.ndarray, length: int) -> None:
        self._ids, self._starts, self.shape = np.asarray(ids), starts, (length, len(starts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, steps: slice) -> np.ndarray:
        return self._ids.take(np.arange(*steps.indices(len(self)))[:, None] + self._starts, mode="clip")
