"""Reads the tool calls in a model's text, in the form that the model was taught."""
