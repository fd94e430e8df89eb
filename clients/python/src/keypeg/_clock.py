"""The clock of lease deadlines, in seconds from an unknown start.

It counts the time during which the machine was suspended, as the server's clock does: after a
suspend, a lease that the server has ended must not look valid here.
"""

from __future__ import annotations

import sys
import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Returns the present time."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

elif sys.platform == "darwin":

    def now() -> float:
        """Returns the present time. This clock of macOS counts sleep; `time.monotonic` does not."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:

    def now() -> float:
        """Returns the present time. The counter of Windows counts sleep."""
        return time.perf_counter()
