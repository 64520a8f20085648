"""What each drafting method brings, and what it costs: `paceline bench drafters`."""
