"""The `paceline` command line."""
