"""How services talk: gRPC, TLS, roles, the wire, and who is at the other end."""
