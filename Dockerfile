# syntax=docker/dockerfile:1

# The service for a PostgreSQL of its own (MEMORY_DATABASE_URL): the embedded one is left out, since a database that
# dies with a container is no database. To have it all the same: --build-arg EXTRAS=all, and a volume at
# /var/lib/memory-service.
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
ARG EXTRAS=local,openai,jwt
WORKDIR /src
RUN python -m venv /opt/memory-service
# pyproject.toml names README.md and LICENSE as parts of the package; the wheel takes migrations along.
COPY pyproject.toml README.md LICENSE ./
COPY memory_service memory_service
COPY db db
COPY migrations migrations
# Every dependency has a wheel for this platform, so no compiler is needed; without one pip fails here, at once.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/memory-service/bin/pip install --disable-pip-version-check --only-binary=:all: ".[${EXTRAS}]"

FROM python:${PYTHON_VERSION}-slim
RUN groupadd --system --gid 10001 memory \
    && useradd --system --uid 10001 --gid memory --home-dir /var/lib/memory-service --shell /usr/sbin/nologin memory \
    && install --directory --owner=memory --group=memory --mode=0700 /var/lib/memory-service
# The same path as in the build: scripts of a virtual environment name their interpreter by its full path.
COPY --from=build /opt/memory-service /opt/memory-service
# Outside a container's loopback nobody could reach it. The service refuses to start on this address without TLS and
# authentication, unless MEMORY_INSECURE=true says that the network around it is trusted.
ENV PATH=/opt/memory-service/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MEMORY_DATA_DIR=/var/lib/memory-service \
    MEMORY_LISTEN=0.0.0.0:50051 \
    MEMORY_OPS_LISTEN=127.0.0.1:50052 \
    MEMORY_LOG_FORMAT=json \
    GRPC_VERBOSITY=ERROR
# By number: Kubernetes' runAsNonRoot does not look names up.
USER 10001:10001
EXPOSE 50051
# Asks the ops port, which answers when the first is saturated; where that is off, the first. Not SERVING: the database
# is away, or it drains. Of an address with TLS it only knows whether somebody listens there. The start period covers
# loading the embedding model and waiting for the first connections.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "-m", "memory_service.container_health"]
ENTRYPOINT ["memory-service"]
CMD ["serve"]
