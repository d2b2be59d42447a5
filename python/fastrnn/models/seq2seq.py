"""Sequence to sequence: an encoder reads a sentence, a decoder with attention writes another one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..checks import check_choice, check_flag
from . import attention as attentions
from .attention import Attention
from .encoder_decoder import Bridge, Decoder, Encoder
from .nn import Embedding, Output
from .pairs import read_side
from .reading import Combine, Reader
from .search import Hypothesis
from .trainable import Part
from .translation import Decoding, Translation, breaks_in, tokens_of, translation_of
from .vocabulary import UNKNOWN, VOCABULARIES
from .writing_model import WritingModel

_VOCAB_SIZE = 8192


class Seq2Seq(WritingModel):
    """Writes a line for each line that it reads.

    An encoder reads the source; a decoder, which begins with the encoder's final state, predicts each token of the
    target from those before it and from what attention reads of the encoder's outputs ``m_s``::

        m, s_0 = encoder(dropout(E_source[x]))              with bidirectional: s_0 through a layer, see Bridge
        y_t, s_t = decoder(dropout(E_target[w_t]), s_(t-1))     with input feeding [E_target[w_t]; dropout(a_(t-1))]
        a_t = tanh(W_c [attention(y_t, m); y_t] + b_c)          without attention a_t = y_t
        p(w_(t+1) | w_1 ... w_t, x) = softmax(W dropout(a_t) + b)

    Args:
        level: what a token is on both sides: "word", what whitespace separates; "char", a character; or "bpe", a piece
            of a word found by byte-pair encoding (needs ``fastrnn[text]``).
        cell: "lstm", "gru", "rnn" (tanh) or "rnn_relu", of encoder and decoder.
        embedding: size of a token's vector.
        hidden: units of each recurrent layer, in each direction.
        layers: recurrent layers of the encoder, and of the decoder.
        dropout: probability in [0, 1], in training only: on embeddings, between the layers, and before the output.
        attention: "none", "dot", "general" or "additive": see ``models.attention.Attention``.
        bidirectional: the encoder reads in both directions.
        tie: W is E_target (needs embedding == hidden).
        seed: integer >= 0 that decides the initial weights, the order of the pairs, dropout and drawing; None draws
            one, kept as ``model.seed``.
        src_level, tgt_level: for one side another ``level``.
        input_feeding: the decoder reads a_(t-1), too; slower, as steps can no longer be taken in one call.
        reverse: the encoder reads the source from its end.
        skip: each recurrent layer whose input has the size of its output adds the one to the other.
        min_frequency: symbols that the training pairs hold less often are unknown ones.
        vocab_size: symbols of level "bpe" at most, at least 257.
        dtype: "float32" or "float64".

    Raises:
        TypeError, ValueError: naming the argument.

    The vocabularies are those of the first pairs given to ``fit`` (or ``build``). A line's end is a token, too; it ends
    each source, and each target begins after it and ends with it.

    Sources: Sutskever, Vinyals, Le, "Sequence to sequence learning with neural networks", 2014; Cho et al., "Learning
    phrase representations using RNN encoder-decoder", 2014; Bahdanau, Cho, Bengio, "Neural machine translation by
    jointly learning to align and translate", 2015; Luong, Pham, Manning, "Effective approaches to attention-based
    neural machine translation", 2015.

    Example:
        >>> import fastrnn
        >>> source = ["a b c", "c a", "b", "c b a", "a c", "b a c", "a", "c"] * 4
        >>> target = [" ".join(word.upper() for word in line.split()) for line in source]
        >>> model = fastrnn.Seq2Seq(embedding=16, hidden=32, seed=1)
        >>> history = model.fit((source, target), epochs=40, batch_size=8, lr=0.01, progress=False)
        >>> model.translate(["c a", "c b a"])
        ['C A', 'C B A']
    """

    _format = "fastrnn.Seq2Seq"
    _config = (
        "src_level", "tgt_level", "cell", "embedding", "hidden", "layers", "dropout", "attention", "bidirectional",
        "tie", "seed", "input_feeding", "reverse", "skip", "min_frequency", "vocab_size", "dtype",
    )  # fmt: skip

    def __init__(
        self,
        level: str = "word",
        cell: str = "lstm",
        embedding: int = 256,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
        attention: str = "general",
        bidirectional: bool = False,
        tie: bool = False,
        seed: int | None = None,
        *,
        src_level: str | None = None,
        tgt_level: str | None = None,
        input_feeding: bool = False,
        reverse: bool = False,
        skip: bool = False,
        min_frequency: int = 1,
        vocab_size: int = _VOCAB_SIZE,
        dtype: str = "float32",
    ) -> None:
        super().__init__(seed)
        where = "Seq2Seq"
        check_choice(where, "level", level, VOCABULARIES)
        self.src_level = check_choice(where, "src_level", level if src_level is None else src_level, VOCABULARIES)
        self.tgt_level = check_choice(where, "tgt_level", level if tgt_level is None else tgt_level, VOCABULARIES)
        self.attention = check_choice(where, "attention", attention, ("none", *attentions.KINDS))
        self.bidirectional = check_flag(where, "bidirectional", bidirectional)
        self.tie = check_flag(where, "tie", tie)
        self.input_feeding = check_flag(where, "input_feeding", input_feeding)
        self.reverse = check_flag(where, "reverse", reverse)
        self._set_sizes(
            cell=cell, embedding=embedding, hidden=hidden, layers=layers, dropout=dropout, skip=skip,
            min_frequency=min_frequency, vocab_size=vocab_size, dtype=dtype,
        )  # fmt: skip
        if self.tie and self.embedding != self.hidden:
            raise ValueError(f"{where}: tie needs embedding == hidden, got {embedding=} and {hidden=}")
        if self.attention == "dot" and self.bidirectional:
            raise ValueError(
                f"{where}: attention='dot' needs outputs of one size, got bidirectional=True: the encoder's have twice "
                "that of the decoder's; use 'general'"
            )
        if self.input_feeding and self.attention == "none":
            raise ValueError(f"{where}: input_feeding feeds what attention found, got attention='none'")

    # -- weights -------------------------------------------------------------------------------------------------------

    @property
    def _levels(self) -> dict[str, str]:
        return {"source": self.src_level, "target": self.tgt_level}

    def _make_weights(self) -> None:
        source, target = (self.vocabularies[name] for name in self._VOCABULARIES)
        rng, dtype = np.random.default_rng(self._seeds["weights"]), np.dtype(self.dtype)
        seeds = self._seeds["recurrent"].generate_state(2)

        hidden, attends = self.hidden, self.attention != "none"
        memory_size = 2 * hidden if self.bidirectional else hidden
        states = 2 if self.cell == "lstm" else 1
        self._breaks = breaks_in(target, self._ends["target"])
        self._encoder = Encoder(
            Embedding(len(source), self.embedding, dtype, rng),
            self._make_stack(self.embedding, seeds[0], self.bidirectional),
            Bridge(self.layers, hidden, states, dtype, rng) if self.bidirectional else None,
            self.dropout,
        )
        embed = Embedding(len(target), self.embedding, dtype, rng)
        self._decoder = Decoder(
            embed,
            self._make_stack(self.embedding + (hidden if self.input_feeding else 0), seeds[1]),
            Reader(Attention(self.attention, hidden, memory_size, dtype, rng), Combine(memory_size, hidden, dtype, rng))
            if attends
            else None,
            Output(hidden, len(target), dtype, rng, embed if self.tie else None),
            self.dropout,
            self.input_feeding,
        )

    def _parts(self) -> dict[str, Part]:
        self._built("parameters")
        encoder, decoder, reader = self._encoder, self._decoder, self._decoder.reader
        parts = {
            "source_embedding": encoder.embed,
            "encoder": encoder.stack,
            "bridge": encoder.bridge,
            "target_embedding": decoder.embed,
            "decoder": decoder.stack,
            "attention": reader and reader.attend,
            "combine": reader and reader.combine,
            "output": decoder.output,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _in_order(self, side: str, ids: np.ndarray) -> np.ndarray:
        return ids[::-1] if side == "source" and self.reverse else ids

    # -- use -----------------------------------------------------------------------------------------------------------

    def _answers(self, sources: Sequence[str], beam: int, batch_size: int) -> list[str]:
        # The lines have passed the limit that counts.
        return self.translate(sources, beam, batch_size=batch_size, max_length=sys.maxsize)

    def translate(self, lines: Sequence[str], beam: int = 1, **options: Any) -> list[str]:
        """The best output for each line: ``translations``, whose options it takes, as text alone."""
        lines, how, found = self._outputs("Seq2Seq.translate", lines, beam, 1, False, options)
        texts, target = [""] * len(lines), self.vocabularies["target"]
        for number, (best, *_) in found:
            copies = how.copy and UNKNOWN in best.tokens
            texts[number] = (
                self._translation(best, lines[number], how).text if copies else target.decode(best.tokens.tolist())
            )
        return texts

    def translations(
        self, lines: Sequence[str], beam: int = 1, n_best: int = 1, **options: Any
    ) -> list[list[Translation]]:
        """The ``n_best`` outputs for each line, best first, with their probabilities and what was read for each token.

        Args:
            lines: a list of str without line breaks, or the ``pathlib.Path`` of a file. An empty line, or one of
                whitespace, gives an empty output.
            beam: how many outputs are followed side by side; 1: always the most probable token.
            n_best: how many of them are wanted, at most ``beam``; for a line that gives fewer there are fewer.
            length_penalty: outputs are ranked by log p / tokens^length_penalty, in [0, 1] (1).
            coverage_penalty: and by how much of the source attention has read, >= 0 (0): see ``models.search.Ranking``.
            max_ratio: an output has at most this many tokens for each of the source, and 10 more (2).
            unknown: "avoid": unknown tokens are not written; "keep": they are, as ``<unk>`` (a character: U+FFFD);
                "copy": the token of the source that attention read most takes their place ("avoid").
            temperature: above 0 tokens are drawn from softmax(logits / temperature), for ``beam`` 1 (0).
            top_k, top_p: draw from the most probable tokens only: as in ``LanguageModel.generate``.
            seed: integer >= 0 for drawing; None goes on with the model's own generator.
            batch_size: lines read side by side (64).
            max_length: tokens of a line; a longer one is an error (1000).

        Raises:
            TypeError, ValueError: naming the argument or line. FloatingPointError: the weights hold NaN or infinity.
        """
        lines, how, found = self._outputs("Seq2Seq.translations", lines, beam, n_best, True, options)
        answers = [[Translation("", [], [], 0.0, 0.0, None)] for _ in lines]
        for number, best in found:
            answers[number] = [self._translation(each, lines[number], how) for each in best]
        return answers

    def _translation(self, best: Hypothesis, line: str, how: Decoding) -> Translation:
        source = tokens_of(self.vocabularies["source"], line)
        return translation_of(best, source, self.vocabularies["target"], self.reverse, how.copy)

    def _outputs(
        self, where: str, lines: Sequence[str], beam: int, n_best: int, attention: bool, options: dict[str, Any]
    ) -> tuple[Sequence[str], Decoding, Iterator[tuple[int, list[Hypothesis]]]]:
        """The lines, how outputs are found, and the outputs of each line that is not empty, by its number."""
        self._built(where.rpartition(".")[2])
        how = Decoding.of_options(where, beam, n_best, self.attention != "none", self._sampling, options)
        given, lines = lines, read_side(where, "lines", lines)
        source = self._sentences(where, "lines", "source", given, lines, how.max_length)
        limits = how.limits(source.lengths - 1)
        written = np.flatnonzero([bool(line.strip()) for line in lines])
        return lines, how, self._hypotheses(where, source, written, limits, how, attention)
