"""Shows that indices beyond 2**31 elements work: one long sequence against the same in two pieces.

The saved gates of the long run hold T*B*4H > 2**31 numbers. The pieces stay below, so their result is right if the
smaller shapes are (the tests hold those to the reference). Needs about 14 GB of memory and a minute.

    python benchmarks/large_index.py
"""

import sys

import numpy as np

import fastrnn


def main() -> int:
    seq_len, batch, hidden = 9000, 128, 480
    elements = seq_len * batch * 4 * hidden
    assert elements > 2**31
    layer = fastrnn.LSTM(1, hidden, seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((seq_len, batch, 1), dtype=np.float32)
    # Only the last step has a gradient of its own: the array of all of them would double the memory.
    dstate = tuple(rng.standard_normal((1, batch, hidden), dtype=np.float32) for _ in "hc")

    y, _, tape = layer.forward(x)
    last = y[-1].copy()
    dx, _ = layer.backward(tape, None, dstate)
    grads = {name: grad.copy() for name, grad in layer.grads.items()}
    del y, tape

    layer.zero_grad()
    half = seq_len // 2
    _, carried, first = layer.forward(x[:half])
    y, _, second = layer.forward(x[half:], carried)
    dx_second, dcarried = layer.backward(second, None, dstate)
    dx_first, _ = layer.backward(first, None, dcarried)

    worst = 0.0
    pairs = {"y": (last, y[-1]), "dx": (dx, np.concatenate([dx_first, dx_second]))}
    pairs |= {name: (grads[name], layer.grads[name]) for name in grads}
    for name, (whole, pieces) in pairs.items():
        error = float(np.abs(whole - pieces).max() / np.abs(pieces).max())
        worst = max(worst, error)
        print(f"{name:14} largest difference {error:.1e} of the largest value")
    ok = worst < 1e-4
    print(f"T*B*4H = {elements} = {elements / 2**31:.2f} * 2**31: {'ok' if ok else 'WRONG'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
