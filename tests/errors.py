"""What the tests of error messages share."""

from types import SimpleNamespace

import numpy as np
import pytest

import fastrnn

T, B, I, H = 6, 3, 4, 5  # noqa: E741
F4 = np.float32
BIG = np.dtype(F4).newbyteorder().str  # the byte order that is not this machine's


class Tagged(np.ndarray):
    """A subclass, whose meaning no kernel can know."""


def params(rows):
    """Rows of (what is called, the error, its message), each with the message as its name."""
    return [pytest.param(*row, id=row[-1][:90]) for row in rows]


def raised(call, error, message):
    with pytest.raises(error) as info:
        call()
    assert type(info.value) is error
    assert str(info.value) == message


def floats(*shape):
    return np.random.default_rng(1).standard_normal(shape, dtype=F4)


def environment():
    """A layer of each kind, its inputs, and an open tape of ``lstm`` with gradients already in place."""
    e = SimpleNamespace(
        lstm=fastrnn.LSTM(I, H, 2, dropout=0.5, seed=0),
        gru=fastrnn.GRU(I, H, batch_first=True, bidirectional=True, seed=0),
        rnn=fastrnn.RNN(I, H, seed=0),
        proj=fastrnn.LSTM(I, H, proj_size=2, seed=0),
        x=floats(T, B, I),
        h=floats(2, B, H),
    )
    y, _, tape = e.lstm.forward(e.x)
    e.lstm.backward(tape, np.ones_like(y))
    e.y, _, e.tape = e.lstm.forward(e.x, dropout_seed=1)
    e.dy = np.ones_like(e.y)
    return e


def snapshot(e):
    arrays = [
        a for layer in (e.lstm, e.gru, e.rnn, e.proj) for a in (*layer.grads.values(), *layer.parameters.values())
    ]
    return [a.tobytes() for a in arrays] + [layer._rng.bit_generator.state for layer in (e.lstm, e.gru, e.rnn, e.proj)]
