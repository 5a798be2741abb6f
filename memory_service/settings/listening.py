"""Where the service listens, with how many threads, and how it ends."""

from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from memory_service.settings.address import split_address


class ListeningSettings(BaseSettings):
    """Listeners, threads and the end of a process."""

    listen: str = Field("127.0.0.1:50051", description="Address and port of the gRPC service; port 0 takes a free one.")
    ops_listen: str = Field(
        "127.0.0.1:50052",
        description="Second address, for health checks only: it answers when the first is saturated. `off`: none.",
    )
    metrics_listen: str = Field(
        "off",
        description="Address that answers Prometheus over HTTP, for example 127.0.0.1:9464. Several `workers` take a "
        "port each, this one and those above it. Tells what the service does, nothing that is stored in it.",
    )
    insecure: bool = Field(
        default=False,
        description="Allow a `listen` address that other machines can reach although calls are not encrypted or not "
        "authenticated.",
    )
    workers: int = Field(1, ge=1, le=64, description="Server processes sharing the port.")
    threads: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Searches and other reads that one process works on at the same time. Unset: 4, or 16 with an "
        "embedding provider. More only serve calls that wait for something far away; together with writes no more than "
        "twice `pool_max_size` makes sense.",
    )
    write_threads: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Writes that one process works on at the same time, on threads of their own. Unset: as many as "
        "`threads`.",
    )
    admin_threads: int = Field(
        2, ge=1, le=64, description="Calls of AdminService one process works on at the same time."
    )
    queue_calls: int = Field(
        100,
        ge=0,
        le=10_000,
        description="Calls of each kind that may wait for a thread, beside those worked on; more get "
        "RESOURCE_EXHAUSTED.",
    )
    queue_timeout_s: float = Field(
        0.5, gt=0, le=600, description="Longest wait for a thread; who has waited longer gets RESOURCE_EXHAUSTED."
    )
    max_concurrent_calls: int = Field(
        512,
        ge=1,
        le=10_000,
        description="Calls of all kinds that gRPC lets into one process; it refuses more without details. A backstop: "
        "keep it above what threads and queues add up to.",
    )
    import_streams: int = Field(
        4,
        ge=1,
        le=64,
        description="Imports one process works on at the same time, on threads of their own; more get "
        "RESOURCE_EXHAUSTED.",
    )
    reflection: Literal["on", "authenticated", "off"] = Field(
        "on",
        description="Serve gRPC reflection, for grpcurl and buf curl: to everybody, or to callers with credentials.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=300,
        description="Seconds between reporting NOT_SERVING on SIGTERM and closing the port; give load balancers ~5.",
    )
    drain_grace_s: float = Field(
        20.0, ge=0, le=600, description="Seconds that calls under way have to finish on SIGTERM."
    )

    @field_validator("reflection", mode="before")
    @classmethod
    def _reflection_may_be_a_boolean(cls, value: Any) -> Any:
        # What it was before it could be authenticated.
        return {"true": "on", "1": "on", "false": "off", "0": "off"}.get(str(value).lower(), value)

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("ops_listen", "metrics_listen")
    @classmethod
    def _is_an_address_or_off(cls, value: str) -> str:
        if value != "off":
            split_address(value)
        return value
