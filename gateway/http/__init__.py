"""The HTTP face: OpenAI's API over a core that does not know HTTP."""
