"""The probes that benchmarks compare with give numbers that a computer can have."""

import pytest

from fastrnn import _core
from helpers import ISAS, kernels


@pytest.mark.parametrize("isa", ISAS)
def test_probes_give_plausible_numbers(isa):
    # Upper bounds only: other programs may have the cores for longer than a probe lasts.
    with kernels(isa, 1):
        for dtype in ("float32", "float64"):
            assert 0 < _core.peak_flops(dtype, 1, 0.002) < 1e13
        for size in (1, 1000, 1 << 20):
            assert 0 < _core.read_bandwidth(size, 2, 0.001) < 1e14


def test_a_round_trip_takes_time():
    assert _core.round_trip(0.001) > 1e-9


@pytest.mark.parametrize(
    "call",
    [
        lambda: _core.peak_flops("float16", 1, 0.001),
        lambda: _core.peak_flops("float32", 0, 0.001),
        lambda: _core.peak_flops("float32", 1, float("nan")),
        lambda: _core.read_bandwidth(0, 1, 0.001),
        lambda: _core.read_bandwidth(1 << 60, 1, 0.001),
        lambda: _core.read_bandwidth(1, 10**6, 0.001),
        lambda: _core.round_trip(-1.0),
    ],
)
def test_probes_refuse_what_they_cannot_do(call):
    with pytest.raises(ValueError, match=r"^(_core|fastrnn): "):
        call()
