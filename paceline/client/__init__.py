"""Typed clients, async and blocking, of the gateway's gRPC service."""

from paceline.client.clients import GatewayClient, SyncGatewayClient
from paceline.client.errors import GatewayError, GatewayUnreachableError
from paceline.client.events import Chunk, Event, Finished, Started, ToolCallDelta
from paceline.client.generation import ChatMessage, Generation, Tool, ToolCall

__all__ = [
    "ChatMessage",
    "Chunk",
    "Event",
    "Finished",
    "GatewayClient",
    "GatewayError",
    "GatewayUnreachableError",
    "Generation",
    "Started",
    "SyncGatewayClient",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
]
