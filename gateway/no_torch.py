"""transformers without torch: a gateway needs tokenizers and configurations only.

transformers imports torch wherever it is installed: seconds of a start and 250 MB, for nothing that a gateway
does.
"""

from __future__ import annotations

import sys


def hide_torch() -> None:
    """Let transformers find no torch in this process.

    It has to come before transformers' own modules are imported; where torch was imported already nothing
    changes. Code that comes with a tokenizer can still import torch.
    """
    if "torch" in sys.modules:
        return
    from transformers import utils
    from transformers.utils import import_utils

    for module in (utils, import_utils):
        vars(module)["is_torch_available"] = lambda: False
