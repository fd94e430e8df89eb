"""Raising an exception in the thread that uses a lease, when the lease is lost.

In the main thread a signal that programs ignore by default (SIGURG) ends a blocking call, and its
handler raises. In other threads, and on Windows, the exception is raised before the next byte code,
so a blocking call of C code delays it. Nothing is raised after the block has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from types import FrameType
from typing import Any

from ._errors import LeaseLost

_SIGNAL = getattr(signal, "SIGURG", None)
_armed: list[Interrupter] = []
"""The interrupters of the main thread that use the signal."""


class Interrupter:
    """Interrupts one block in one thread, at most once."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._is_armed = False
        self._uses_signal = False
        self._lost: LeaseLost | None = None
        self._is_raised = False

    def arm(self) -> None:
        """Starts to interrupt the present thread; must be called in the thread of the block."""
        self._uses_signal = _install()
        self._is_armed = True
        if self._uses_signal:
            _armed.append(self)

    def disarm(self) -> None:
        """Stops to interrupt. A `LeaseLost` that is on its way is raised here, or never."""
        with self._lock:
            self._is_armed = False
            is_on_its_way = self._lost is not None and not self._uses_signal
        if is_on_its_way and not self._is_raised:
            # Takes back an exception that this thread has not raised yet.
            _raise_in(self._thread, None)
        if self._uses_signal and self in _armed:
            _armed.remove(self)
            _restore()

    def interrupt(self, lost: LeaseLost) -> None:
        """Raises the exception in the thread of the block. Called in another thread."""
        with self._lock:
            if not self._is_armed or self._lost is not None:
                return
            self._lost = lost
            if self._uses_signal:
                # The main thread may be at its end: then there is nothing to interrupt.
                with contextlib.suppress(ProcessLookupError, OSError):
                    assert _SIGNAL is not None
                    signal.pthread_kill(self._thread, _SIGNAL)
                return
            _raise_in(self._thread, self._exception_type(lost))

    def _exception_type(self, lost: LeaseLost) -> type[LeaseLost]:
        """Returns a type, because only a type can be raised in another thread."""
        interrupter = self

        class Raised(LeaseLost):
            def __init__(self) -> None:
                super().__init__(
                    lost.cause,
                    "",
                    pool=lost.pool,
                    key_id=lost.key_id,
                    fencing_token=lost.fencing_token,
                )
                self.args = lost.args
                interrupter._is_raised = True

        Raised.__name__ = Raised.__qualname__ = LeaseLost.__name__
        Raised.__module__ = LeaseLost.__module__
        return Raised

    def take(self) -> LeaseLost | None:
        """Returns the exception to raise in the block, once."""
        if not self._is_armed or self._is_raised or self._lost is None:
            return None
        self._is_raised = True
        return self._lost


def _on_signal(number: int, frame: FrameType | None) -> None:
    for interrupter in reversed(_armed):
        lost = interrupter.take()
        if lost is not None:
            raise lost


def _install() -> bool:
    """Makes the signal raise; returns whether it does. A handler of the program is left alone."""
    if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(_SIGNAL) is _on_signal:
        return True
    if signal.getsignal(_SIGNAL) not in (signal.SIG_DFL, signal.SIG_IGN):
        return False
    try:
        signal.signal(_SIGNAL, _on_signal)
    except ValueError:
        # A subinterpreter has no signals.
        return False
    return True


def _restore() -> None:
    if not _armed and _SIGNAL is not None and signal.getsignal(_SIGNAL) is _on_signal:
        signal.signal(_SIGNAL, signal.SIG_DFL)


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Sets the exception that a thread raises next; `None` takes it back. CPython only: elsewhere
    nothing is raised, and `check` finds the loss."""
    if sys.implementation.name != "cpython":
        return
    exception: Any = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)
