# A Redis for tests of our images, on their base: the server of a Python package. Fleets take one of Redis' or
# Valkey's own images.
ARG BASE
FROM ${BASE}
COPY valkey-server /usr/local/bin/
USER 10001:10001
ENTRYPOINT ["valkey-server"]
