"""Where models come from, how they are converted, and whether they are computed rightly."""
