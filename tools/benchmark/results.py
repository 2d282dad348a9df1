"""Measurements, one entry per job, in one file beside the page, so that a single row can be measured again."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lrp_fx.files import write_text


@dataclass(frozen=True)
class Results:
    """Measured jobs of a device.

    Attributes:
        path: the file, with the jobs of all devices.
        device: "cpu" or "cuda".
    """

    path: Path
    device: str

    def read(self) -> dict[str, Any]:
        """Job -> its measurements."""
        return {job: entry["measured"] for job, entry in self._all().get(self.device, {}).items()}

    def settings(self) -> list[str]:
        """Days, versions and machines of the measurements, a line each."""
        return sorted({entry["setting"] for entry in self._all().get(self.device, {}).values()})

    def keep(self, job: str, measured: dict[str, Any]) -> None:
        """Write one job down."""
        everything = self._all()
        everything.setdefault(self.device, {})[job] = {"setting": setting(self.device), "measured": measured}
        ordered = {device: dict(sorted(jobs.items())) for device, jobs in sorted(everything.items())}
        write_text(self.path, json.dumps(ordered, indent=1) + "\n")

    def _all(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}


def setting(device: str) -> str:
    """Day, versions and machine of a measurement."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {os.cpu_count()} cores"
    return f"{time.strftime('%Y-%m-%d')}: {versions}; {platform.machine()} ({machine})"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
