"""Packages that transformers imports wherever they are installed, kept out of services that never use them.

torch is seconds and 250 MB of a gateway; scipy, which only losses need, and torchao cost a verifier a second.
"""

from __future__ import annotations

import sys


def hide(package: str) -> None:
    """Let transformers not find a package in this process.

    It has to come before transformers' own modules are imported; a package that was imported already stays.
    Code that comes with a model can still import it.
    """
    if package in sys.modules:
        return
    from transformers import utils
    from transformers.utils import import_utils

    for module in (utils, import_utils):
        vars(module)[f"is_{package}_available"] = _is_not_available


def is_torchao_checkpoint(model: str) -> bool:
    """Whether torchao has to read a model's weights; true of a model that is not on this machine yet."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(model, local_files_only=True)
    except (OSError, ValueError):
        return True
    return (config.get("quantization_config") or {}).get("quant_method") == "torchao"


def _is_not_available(*arguments: object, **options: object) -> bool:
    return False
