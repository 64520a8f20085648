# A Redis for tests of our images, made from their base; fleets take one of Redis' or Valkey's own images.
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENTRYPOINT ["redis-server"]
