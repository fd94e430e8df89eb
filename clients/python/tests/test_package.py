"""The package: its version, and the platform of a wheel with the program."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import ROOT

import keypeg

sys.path.insert(0, str(ROOT / "clients/python"))


def test_the_version_is_that_of_the_server() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert keypeg.__version__ == version.group(1)


def program(processor: int, *versions: str) -> bytes:
    head = b"\x7fELF\x02" + bytes(13) + processor.to_bytes(2, "little")
    return head + b"".join(b"\0" + version.encode() + b"\0" for version in versions)


def test_the_platform_of_a_wheel_is_that_of_its_program() -> None:
    build = pytest.importorskip("hatch_build")
    assert (
        build.platform_of(program(62, "GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.17")) == "manylinux_2_34_x86_64"
    )
    assert build.platform_of(program(183, "GLIBC_2.17")) == "manylinux_2_17_aarch64"
    for other, says in (
        (b"#!/bin/sh\n", "not a 64-bit ELF program"),
        (program(40, "GLIBC_2.17"), "not a 64-bit ELF program"),
        (program(62), "not linked with the GNU C library"),
    ):
        with pytest.raises(ValueError, match=says):
            build.platform_of(other)
