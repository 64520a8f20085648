"""The engine's parts for GPUs. Only `engine.devices` imports them."""
