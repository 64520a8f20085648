"""The engine's parts for CPUs. Only `engine.devices` imports them."""
