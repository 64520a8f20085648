"""The gateway: requests in, text out."""
