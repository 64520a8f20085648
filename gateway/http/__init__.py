"""The HTTP face: OpenAI's API over a core that knows no HTTP."""
