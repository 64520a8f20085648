"""The client of Redis, and the URLs that name a server, Sentinels or a cluster."""
