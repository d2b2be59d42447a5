"""Changing the index of a saved model by hand, for tests of what is read then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastrnn.models import checkpoint


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """With a new checksum, so that ``change`` itself is what reading meets."""
    path = folder / "model.json"
    data = json.loads(path.read_text())
    del data["sha256"]
    change(data)
    path.write_text(json.dumps(data | {"sha256": checkpoint.digest_of(data)}))
