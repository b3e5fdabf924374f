"""Which device a model runs on."""

from __future__ import annotations

import re

import torch

from icl_fast.errors import InputError


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of that name; "auto" is CUDA where torch sees a GPU.

    Raises:
        InputError: not the name of a supported device, or a CUDA device that this machine does not have.
    """
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", name):
        raise InputError(f"device {name}: must be auto, cpu, cuda or cuda:<number>")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu or auto")
    return device
