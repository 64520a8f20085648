"""The verifier: holds the sessions' KV, draws every token, decides the text."""
