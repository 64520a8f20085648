"""The drafter: drafts token trees for sessions that live at verifiers."""
