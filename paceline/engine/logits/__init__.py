"""What is done to a row's logits before its token is drawn."""
