"""The probes that benchmarks compare with give numbers that a computer can have."""

import pytest

from fastrnn import _core
from helpers import ISAS, kernels


@pytest.mark.parametrize("isa", ISAS)
def test_probes_give_plausible_numbers(isa):
    with kernels(isa, 1):
        single = _core.peak_flops("float32", 1, 0.002)
        assert 1e8 < single < 1e13
        # Half as many numbers fit in a vector; other programs may have had the core meanwhile.
        assert 0.05 < _core.peak_flops("float64", 1, 0.002) / single < 5
        for size in (1, 1000, 1 << 20):
            assert 1e7 < _core.read_bandwidth(size, 2, 0.001) < 1e14


def test_a_round_trip_takes_time():
    assert 1e-9 < _core.round_trip(0.001) < 10


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
