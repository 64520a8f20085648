"""Models: where they come from, how they are converted, and whether the engine computes them rightly."""
