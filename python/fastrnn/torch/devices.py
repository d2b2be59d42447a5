"""Which part serves tensors of which device."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from . import cpu, cuda

#: By the type of torch's devices. All parts have the same functions.
DEVICES: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda}


def part_for(x: Tensor) -> ModuleType:
    return DEVICES["cpu" if x.is_cpu else x.device.type]  # a device takes a while to make
