"""The gRPC face over the same core."""
