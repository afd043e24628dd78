"""Loops of the downscaling network on the CPU: kernels.cpp."""

from __future__ import annotations

from pathlib import Path

from ace_core.native import Loops

LOOPS = Loops(Path(__file__).with_name("kernels.cpp"))
