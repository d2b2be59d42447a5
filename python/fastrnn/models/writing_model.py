"""What models whose decoder writes a line share: batches, loss and gradients, the search for outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .encoder_decoder import Decoder, Steps, token_places
from .lines import Sentences
from .pairs_model import PairsModel, similar
from .search import Hypothesis, search
from .translation import Decoding


@dataclass(frozen=True)
class Batch:
    """Pairs side by side: what the encoder reads, and ids (T, B), padded to the longest; every target has a token."""

    source: np.ndarray
    source_lengths: np.ndarray
    inputs: np.ndarray  # what the decoder reads: the end, then the target without its own
    targets: np.ndarray
    target_lengths: np.ndarray


class WritingModel(PairsModel):
    """A model that predicts each token of a target from those before it, and from what an encoder makes of the source.

    A kind of model makes ``_encoder``, ``_decoder`` and ``_breaks`` with its weights. The encoder is called with what
    ``batch`` of the sources gives, as ``Encoder`` is.
    """

    _SAMPLES = True

    tie: bool = False  # whether the output layer has the weights of the decoder's embedding
    _encoder: Any
    _decoder: Decoder
    _breaks: np.ndarray  # tokens with a line break beside the end

    def _batch(self, source: Any, target: Sentences, rows: np.ndarray) -> Batch:
        read, lengths = source.batch(rows)
        targets, target_lengths = target.batch(rows)
        inputs = np.empty_like(targets)
        inputs[0], inputs[1:] = self._ends["target"], targets[:-1]
        return Batch(read, lengths, inputs, targets, target_lengths)

    def loss_and_grads(
        self,
        batch: Batch,
        rng: np.random.Generator | None = None,
        *,
        label_smoothing: float = 0.0,
        sampling: float = 0.0,
        accumulate: bool = True,
    ) -> float:
        self._built("loss_and_grads")
        self._check_drawing(rng, dropout=self.dropout, sampling=sampling)
        encoder, decoder = self._encoder, self._decoder
        if not accumulate:
            self._zero_grads_before(decoder.output)
        memory, state, encoded = encoder.forward(batch.source, batch.source_lengths, rng)
        prepared, inputs = decoder.prepare(memory, batch.source_lengths), batch.inputs
        if rng is not None and sampling > 0.0:
            inputs = _sampled(Steps(decoder, prepared, state), inputs, sampling, rng)
        rows, tape = decoder.forward(inputs, batch.target_lengths, prepared, state, rng)
        targets = batch.targets.ravel()[token_places(len(inputs), batch.target_lengths)]
        nats, drows = decoder.output.loss(
            np.ascontiguousarray(rows), targets, 1.0 / len(targets), accumulate, smoothing=label_smoothing
        )
        dmemory, dstate = decoder.backward(tape, drows)
        encoder.backward(encoded, dmemory, dstate)
        return float(nats.sum(dtype=np.float64) / len(targets))

    def _nats(self, batch: Batch) -> np.ndarray:
        memory, state = self._encoder(batch.source, batch.source_lengths)
        prepared = self._decoder.prepare(memory, batch.source_lengths)
        rows, places = self._decoder(batch.inputs, batch.target_lengths, prepared, state)
        nats = self._decoder.output.nats(np.ascontiguousarray(rows), batch.targets.ravel()[places])
        return np.bincount(places % batch.targets.shape[1], nats, batch.targets.shape[1])

    def _hypotheses(
        self, where: str, source: Any, rows: np.ndarray, limits: np.ndarray, how: Decoding, attention: bool = False
    ) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Each of these rows of ``source`` with its best outputs, of ``limits`` (n,) tokens at most; with what
        ``attention`` read where that is wanted."""
        for places in similar(source.lengths[rows], how.batch_size):
            chosen = rows[places]
            found = search(
                where, self._steps(*source.batch(chosen)), self._ends["target"], limits[chosen], source.lengths[chosen],
                beam=how.beam, n_best=how.n_best, ranking=how.ranking, never=how.never(self._breaks), draw=how.draw,
                attention=attention or how.reads,
            )  # fmt: skip
            yield from zip(chosen.tolist(), found, strict=True)

    def _steps(self, source: np.ndarray, lengths: np.ndarray) -> Steps:
        memory, state = self._encoder(source, lengths)
        return Steps(self._decoder, self._decoder.prepare(memory, lengths), state)


def _sampled(steps: Steps, inputs: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Inputs (T, B) of which this share is the most probable token after those before it; never the first one."""
    inputs, own, nothing = inputs.copy(), rng.random(inputs.shape) < share, np.empty(0, np.int32)
    for t in range(len(inputs) - 1):
        tokens, _ = steps.best(inputs[t], 1, nothing)
        inputs[t + 1] = np.where(own[t + 1], tokens[:, 0], inputs[t + 1])
    return inputs
