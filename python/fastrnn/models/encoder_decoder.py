"""The two halves of a sequence-to-sequence model, each with its own backward.

Everything is time-major. Rows are padded to the longest; past the end of a row nothing is computed by the recurrent
layers, and nothing counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _core
from ..arrays import HOST
from .nn import Dropout, Embedded, Embedding, Layer, Output
from .products import add_outer, product
from .reading import Reader, Reading

State = Any  # of a recurrent layer: h, or the pair (h, c)
Rng = np.random.Generator | None


def dropout_seed(rng: Rng) -> int | None:
    """For one call of a recurrent layer."""
    return None if rng is None else int(rng.integers(2**64, dtype=np.uint64))


class Bridge(Layer):
    """From the final states of both directions to the first state of a decoder, layer by layer::

        h = tanh(W_h [h_forward; h_reverse] + b_h)
        c = W_c [c_forward; c_reverse] + b_c

    W (L, H, 2H), b (L, 1, H), each U(-1/sqrt(2H), 1/sqrt(2H)) at first.
    """

    def __init__(self, layers: int, hidden: int, states: int, dtype: np.dtype, rng: np.random.Generator) -> None:
        super().__init__(HOST)
        bound = 1.0 / math.sqrt(2 * hidden)
        for name in ("h", "c")[:states]:
            for part, shape in (("weight", (layers, hidden, 2 * hidden)), ("bias", (layers, 1, hidden))):
                self._add(f"{part}_{name}", rng.uniform(-bound, bound, shape).astype(dtype))

    def forward(self, state: State) -> tuple[State, Any]:
        """(2 L, B, H) -> (L, B, H), each, and what ``backward`` needs."""
        pairs = [_side_by_side(part) for part in _parts(state)]
        outputs = []
        for name, pair in zip("hc", pairs, strict=False):
            weight, bias = self.parameters[f"weight_{name}"], self.parameters[f"bias_{name}"]
            outputs.append(_products(pair, weight.swapaxes(1, 2)) + bias)
        np.tanh(outputs[0], out=outputs[0])
        return _state(outputs), (pairs, outputs[0])

    def backward(self, tape: Any, dstate: State) -> State:
        pairs, h = tape
        dstates = list(_parts(dstate))
        dstates[0] = dstates[0] * (1.0 - h * h)
        dparts = []
        for name, pair, d in zip("hc", pairs, dstates, strict=False):
            for layer in zip(self.grads[f"weight_{name}"], d, pair, strict=True):
                add_outer(*layer)
            self.grads[f"bias_{name}"] += d.sum(axis=1, keepdims=True)
            dpair = _products(d, self.parameters[f"weight_{name}"])
            layers, rows, size = dpair.shape
            dpart = dpair.reshape(layers, rows, 2, size // 2).swapaxes(1, 2)
            dparts.append(np.ascontiguousarray(dpart).reshape(2 * layers, rows, size // 2))
        return _state(dparts)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Layer by layer, (L, M, K) and (L, K, N)."""
    return np.stack([product(*layer) for layer in zip(a, b, strict=True)])


def _side_by_side(part: np.ndarray) -> np.ndarray:
    """(2 L, B, H) -> (L, B, 2 H)."""
    directions, rows, size = part.shape
    pairs = part.reshape(directions // 2, 2, rows, size).swapaxes(1, 2)
    return np.ascontiguousarray(pairs).reshape(directions // 2, rows, 2 * size)


def _parts(state: State) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def _state(parts: list[np.ndarray]) -> State:
    return parts[0] if len(parts) == 1 else tuple(parts)


class Encoder:
    """Reads a sequence: its outputs, which attention reads, and the state that it ends in, which a decoder begins with.

    ``stack`` is a recurrent layer; where it reads in both directions, ``bridge`` joins their states.
    """

    def __init__(self, embed: Embedding, stack: Any, bridge: Bridge | None, dropout: float) -> None:
        self.embed, self.stack, self.bridge, self._dropout = embed, stack, bridge, Dropout(dropout)

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, State]:
        read = self.embed.read(ids, self.stack)
        memory, state = self.stack(read.x, lengths=lengths, **read.options)
        return memory, state if self.bridge is None else self.bridge.forward(state)[0]

    def forward(self, ids: np.ndarray, lengths: np.ndarray, rng: Rng) -> tuple[np.ndarray, State, Any]:
        """Outputs (S, B, M), final state, and what ``backward`` needs, of ids (S, B)."""
        read = self.embed.read(ids, self.stack, self._dropout, rng)
        memory, state, tape = self.stack.forward(
            read.x, lengths=lengths, dropout_seed=dropout_seed(rng), **read.options
        )
        crossed = None
        if self.bridge is not None:
            state, crossed = self.bridge.forward(state)
        return memory, state, (read, tape, crossed)

    def backward(self, tape: Any, dmemory: np.ndarray | None, dstate: State) -> None:
        read, tape, crossed = tape
        if self.bridge is not None:
            dstate = self.bridge.backward(crossed, dstate)
        dy = None if dmemory is None else np.ascontiguousarray(dmemory)
        dx, _ = self.stack.backward(tape, dy, dstate)
        self.embed.read_backward(read, dx)


@dataclass
class _Segment:
    """Steps of a decoder that one call of the recurrent layer takes."""

    steps: slice
    rows: np.ndarray  # which of the (T B) places of the segment hold a token
    tape: Any = None
    read: Any = None
    mask: np.ndarray | None = None


@dataclass
class DecoderTape:
    shape: tuple[int, ...]  # of the inputs
    read: Embedded
    reading: Reading | None
    segments: list[_Segment] = field(default_factory=list)


class Decoder:
    """Predicts a sequence token by token, from the encoder's final state and what attention reads of its outputs::

        y_t = f(E[w_t], y_(t-1))               with input feeding f([E[w_t]; dropout(a_(t-1))], y_(t-1))
        a_t = tanh(W_c [context_t; y_t] + b_c)    without attention a_t = y_t
        p(w_(t+1)) = softmax(W a_t + b)

    Where all inputs are known and there is no input feeding, ``stack`` takes all steps in one call, and attention
    reads for all of them at once. With input feeding a call takes one step.

    Source: Luong, Pham, Manning, "Effective approaches to attention-based neural machine translation", 2015.
    """

    def __init__(
        self,
        embed: Embedding,
        stack: Any,
        reader: Reader | None,
        output: Output,
        dropout: float,
        input_feeding: bool,
    ) -> None:
        self.embed, self.stack, self.reader, self.output = embed, stack, reader, output
        self.input_feeding = input_feeding
        self._dropout = Dropout(dropout)

    def prepare(self, memory: np.ndarray, lengths: np.ndarray) -> Reading | None:
        return None if self.reader is None else self.reader.prepare(memory, lengths)

    def __call__(
        self, inputs: np.ndarray, lengths: np.ndarray, reading: Reading | None, state: State
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the output layer gets for each token, (N, size), and where in (T B) these are; no dropout."""
        rows, _ = self._run(inputs, lengths, reading, state, None, keep=False)
        return rows, token_places(len(inputs), lengths)

    def forward(
        self, inputs: np.ndarray, lengths: np.ndarray, reading: Reading | None, state: State, rng: Rng
    ) -> tuple[np.ndarray, DecoderTape]:
        """The same, with dropout, and what ``backward`` needs; inputs (T, B)."""
        return self._run(inputs, lengths, reading, state, rng, keep=True)

    def _run(
        self, inputs: np.ndarray, lengths: np.ndarray, reading: Reading | None, state: State, rng: Rng, keep: bool
    ) -> tuple[np.ndarray, DecoderTape]:
        read = self.embed.read(inputs, None if self.input_feeding else self.stack, self._dropout, rng)
        tape, fed, found = DecoderTape(inputs.shape, read, reading), None, []
        for steps in self._cuts(len(inputs)):
            count, x = steps.stop - steps.start, read.x
            left = np.clip(lengths - steps.start, 0, count)
            segment = _Segment(steps, token_places(count, left))
            if self.input_feeding:
                x = x[steps]
                fed = self._nothing_fed(x) if fed is None else fed
                x = np.concatenate([x, fed], axis=2)
            if keep:
                y, state, segment.tape = self.stack.forward(
                    x, state, lengths=left, dropout_seed=dropout_seed(rng), **read.options
                )
            else:
                y, state = self.stack(x, state, lengths=left, **read.options)
            if reading is not None:
                y, segment.read = reading.forward(y)
            features, segment.mask = self._dropout.forward(_taken(y, segment.rows), rng)
            if self.input_feeding:
                fed = _spread(features, segment.rows, y.shape[:2])
            found.append(features)
            if keep:
                tape.segments.append(segment)
        return found[0] if len(found) == 1 else np.concatenate(found), tape

    def _cuts(self, length: int) -> list[slice]:
        size = 1 if self.input_feeding else length
        return [slice(start, start + size) for start in range(0, length, size)]

    def _nothing_fed(self, x: np.ndarray) -> np.ndarray:
        return np.zeros((*x.shape[:2], self.stack.hidden_size), x.dtype)

    def backward(self, tape: DecoderTape, drows: np.ndarray) -> tuple[np.ndarray | None, State]:
        """The gradients of the encoder's outputs (S, B, M), None without attention, and of the first state."""
        gradient, dstate, dfed = None if tape.reading is None else tape.reading.gradient(), None, None
        parts, end = [], len(drows)  # of dx, the last first
        for segment in reversed(tape.segments):
            d, end = drows[end - len(segment.rows) : end], end - len(segment.rows)
            if dfed is not None:
                d = d + _taken(dfed, segment.rows)
            d = Dropout.backward(segment.mask, d)
            shape = (segment.steps.stop - segment.steps.start, tape.shape[1])
            dy = _spread(d, segment.rows, shape)
            if gradient is not None:
                dy = gradient.through(segment.read, dy)
            dx, dstate = self.stack.backward(segment.tape, dy, dstate)
            if self.input_feeding:
                size = tape.read.x.shape[2]
                dx, dfed = dx[:, :, :size], dx[:, :, size:]
            parts.append(dx)
        self.embed.read_backward(tape.read, parts[0] if len(parts) == 1 else np.concatenate(parts[::-1]))
        return None if gradient is None else gradient.of_outputs(), dstate


class Steps:
    """A decoder one token at a time (a ``decoding.StepDecoder``), on the layer's packed weights.

    Its rows are those of the sentences that it reads, equally many next to each other for each sentence; ``select``
    must leave it so, but may leave sentences out and change their order.
    """

    def __init__(self, decoder: Decoder, reading: Reading | None, state: State) -> None:
        self._decoder, self._reading = decoder, reading
        rows = _parts(state)[0].shape[1]
        self._stream = decoder.stack.stream(rows)
        self._stream.state = state
        self._sentences = np.arange(rows)  # of each row, by their place in what is read
        self._fed: np.ndarray | None = None
        self._symbols: _core.TopSymbols | None = None
        self.weights: np.ndarray | None = None  # of attention at the last step, (N, S)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._decoder.output.logits(self.features(tokens))

    def best(self, tokens: np.ndarray, count: int, never: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As ``search.Rows`` has it. The output layer's weights must stay as they are from the first call on."""
        output = self._decoder.output
        if self._symbols is None:
            self._symbols = output.searcher(len(tokens) * max(1, count // 2))  # half of the candidates go on
        return self._symbols.find(self.features(tokens), min(count, len(output.weight)), never)

    def features(self, tokens: np.ndarray) -> np.ndarray:
        """What the output layer gets after these tokens (N,): (N, size)."""
        decoder = self._decoder
        x = decoder.embed.forward(tokens)
        if decoder.input_feeding:
            fed = decoder._nothing_fed(x[None])[0] if self._fed is None else self._fed
            x = np.concatenate([x, fed], axis=1)
        features = self._stream.step(x)
        if self._reading is not None:
            features, self.weights = self._reading.step(features)
        self._fed = features
        return features

    def select(self, rows: np.ndarray) -> None:
        self._stream.select(rows)
        self._fed = None if self._fed is None else self._fed[rows]
        sentences = self._sentences[rows]
        begins = np.diff(sentences, prepend=-1) != 0
        self._sentences, kept = np.cumsum(begins) - 1, sentences[begins]
        if self._reading is not None and not np.array_equal(kept, np.arange(len(self._reading))):
            self._reading = self._reading[kept]


def token_places(steps: int, lengths: np.ndarray) -> np.ndarray:
    """Which of the (T B) places hold a token of a row."""
    return np.flatnonzero(np.arange(steps)[:, None] < lengths)


def _taken(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(T, B, size) -> (N, size)."""
    flat = array.reshape(-1, array.shape[2])
    return flat if len(places) == len(flat) else flat[places]


def _spread(rows: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(N, size) -> (T, B, size), zero elsewhere."""
    if len(places) == math.prod(shape):
        return np.ascontiguousarray(rows).reshape(*shape, rows.shape[1])
    flat = np.zeros((math.prod(shape), rows.shape[1]), rows.dtype)
    flat[places] = rows
    return flat.reshape(*shape, rows.shape[1])
