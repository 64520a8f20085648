"""The engine: one ragged forward over rows of many sessions; arrays in, arrays out."""
