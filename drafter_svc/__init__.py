"""2  guesses: drafts token trees for sessions that live at verifiers."""
