"""Which verifier and which drafter a session gets: pure functions of what is known of the pods."""
