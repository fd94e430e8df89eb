"""Puts the program `keypeg` into the wheel, if KEYPEG_WHEEL_BINARY names it.

Without the variable the wheel has only Python code and is for every platform. With it, the wheel is for
the platform of the program: its processor, and the C library whose versions it needs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROCESSORS = {62: "x86_64", 183: "aarch64"}
"""The processors by their number in the ELF header (`e_machine`)."""


class BinaryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the program to the scripts of the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before the wheel is built."""
        binary = os.environ.get("KEYPEG_WHEEL_BINARY")
        if not binary or version == "editable":
            return
        path = Path(binary).resolve()
        build_data["shared_scripts"] = {str(path): "keypeg"}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_of(path.read_bytes())}"


def platform_of(program: bytes) -> str:
    """Returns the platform of a 64-bit ELF program that is linked with the GNU C library.

    Raises `ValueError` for any other file.
    """
    processor = PROCESSORS.get(int.from_bytes(program[18:20], "little"))
    if program[:5] != b"\x7fELF\x02" or processor is None:
        raise ValueError("KEYPEG_WHEEL_BINARY is not a 64-bit ELF program for x86_64 or aarch64")
    versions = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", program)]
    if not versions:
        raise ValueError("KEYPEG_WHEEL_BINARY is not linked with the GNU C library")
    # PEP 600: the oldest version of the C library that has all symbols.
    return f"manylinux_2_{max(versions)}_{processor}"
