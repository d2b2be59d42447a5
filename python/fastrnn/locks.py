"""Locks that survive fork: a child finds them free, whichever thread of its parent held them."""

from __future__ import annotations

import os
import threading
import weakref


class ForkLock:
    """``with fork_lock.lock:`` instead of a lock; also an identity that tapes share with their layer.

    The lock itself is replaced in a child, as the thread that held it does not live there. A ``with`` that was entered
    before the fork keeps the lock that it took.
    """

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        _live.add(self)


_live: weakref.WeakSet[ForkLock] = weakref.WeakSet()


def _renew() -> None:
    for fork_lock in _live:
        fork_lock.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
