# A Redis for tests of our images, on their base: the programs of a Python package. Fleets take one of Redis' or
# Valkey's own images.
ARG BASE
FROM ${BASE}
COPY valkey-server valkey-cli /usr/local/bin/
USER 10001:10001
ENTRYPOINT ["valkey-server"]
