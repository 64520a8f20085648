"""Where and in which number type a method computes, as the settings say."""

from __future__ import annotations

import torch

from drafter_svc.config import DrafterSettings
from drafter_svc.methods.base import UnfitError
from paceline.engine.loading import ModelError
from paceline.engine.model import choose_device
from paceline.service.machine import usable_cores


def device_of(settings: DrafterSettings) -> torch.device:
    """Raises `UnfitError` for a device that this machine lacks."""
    try:
        return choose_device(settings.device)
    except ModelError as error:
        raise UnfitError(str(error)) from error


def take_threads(settings: DrafterSettings) -> None:
    """Compute on this thread with as many CPU threads as the settings say."""
    torch.set_num_threads(settings.threads or min(torch.get_num_threads(), usable_cores()))


def dtype_of(settings: DrafterSettings) -> torch.dtype | None:
    """None: that of the weights."""
    if settings.dtype == "auto":
        return None
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype
