"""Settings: where each comes from, and what is said when they cannot be."""

import json
import os
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from pydantic import AliasChoices, ValidationError

from memory_service import config
from memory_service.config import ConfigurationError, Settings, unknown_variables, variables
from memory_service.settings.address import split_address

HUSH = "hush-hush"


def complaint(**overrides: Any) -> list[str]:
    """Returns the lines of the error that loading raises."""
    with pytest.raises(ConfigurationError) as caught:
        config.load(**overrides)
    return str(caught.value).splitlines()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sets variables: `environment.setenv(name, value)`."""
    return monkeypatch


def test_newcomer_needs_no_settings() -> None:
    settings = config.load()
    assert settings.embedded
    assert settings.listen == "127.0.0.1:50051"
    assert (settings.embedder, settings.model, settings.dimensions) == ("local", "wordllama-l2-supercat-256", 256)
    assert settings.data_dir == Path(platformdirs.user_data_dir("memory-service"))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config.load().workers = 2


def a_value_of(name: str) -> str:
    """Returns a value, other than the default, that every setting of its kind takes."""
    special = {
        "listen": "127.0.0.1:1",
        "ops_listen": "off",
        "data_dir": "/somewhere",
        "database_url": "postgresql://u@h/d",
        "direct_database_url": "postgresql://u@h/d",
        "prepared_statements": "true",
        "embedder": "openai",
        "embedding_model": "text-embedding-3-large",
        "embedding_dimensions": "128",
        "openai_api_key": "key",
        "openai_base_url": "http://127.0.0.1:1/v1",
        "metrics_listen": "127.0.0.1:2",
        "language": "german",
        "ranking": "balanced",
        "dense_weight": "0.25",
        "ann_index": "ivfflat",
        "ann_build_memory_mb": "512",
        "recall_probe_fraction": "0.5",
        "recall_target": "0.5",
        "audit": "all",
        "log_level": "debug",
        "log_format": "json",
        "reflection": "authenticated",
        "environment": "development",
        "auth": "keys",
        "tls_certificate": "/server.pem",
        "tls_key": "/server.key",
        "tls_client_ca": "/ca.pem",
        "jwt_issuer": "https://issuer.example",
        "jwt_audience": "memories",
        "jwt_jwks_url": "https://issuer.example/keys",
        "jwt_algorithms": "ES256",
        "jwt_user_claim": "user",
        "jwt_prefix_claim": "tenants",
        "jwt_all_users_claim": "everybody",
        "jwt_role_claim": "roles",
        "jwt_role_prefix": "memory:",
        "jwt_default_role": "reader",
        "threads": "3",
        "write_threads": "3",
    }
    if name in special:
        return special[name]
    default = Settings.model_fields[name].default
    return str(not default).lower() if isinstance(default, bool) else str(default + 1)


@pytest.mark.parametrize(
    ("name", "variable"), [(name, variable) for name in Settings.model_fields for variable in variables(name)]
)
def test_every_setting_is_read_from_its_variables(environment: pytest.MonkeyPatch, name: str, variable: str) -> None:
    needed = {
        "direct_database_url": {"MEMORY_DATABASE_URL": "postgresql://u@h/d"},
        "reflection": {"MEMORY_AUTH": "keys"},
        "embedding_dimensions": {"MEMORY_EMBEDDER": "none"},
        "embedding_model": {"MEMORY_EMBEDDER": "openai", "OPENAI_API_KEY": "key"},
        "embedder": {"OPENAI_API_KEY": "key"},
        "tls_certificate": {"MEMORY_TLS_KEY": "/server.key"},
        "tls_key": {"MEMORY_TLS_CERTIFICATE": "/server.pem"},
        "tls_client_ca": {"MEMORY_TLS_CERTIFICATE": "/server.pem", "MEMORY_TLS_KEY": "/server.key"},
        "ops_tls": {"MEMORY_TLS_CERTIFICATE": "/server.pem", "MEMORY_TLS_KEY": "/server.key"},
    }
    for other, value in needed.get(name, {}).items():
        environment.setenv(other, value)
    before = getattr(Settings.model_construct(), name)
    environment.setenv(variable, a_value_of(name))
    after = getattr(config.load(), name)
    assert after != before
    shown = after.get_secret_value() if hasattr(after, "get_secret_value") else after
    assert str(shown).lower() in {a_value_of(name).lower(), a_value_of(name) + ".0"}


def test_variables_have_the_prefix_and_the_usual_names() -> None:
    assert variables("listen") == ["MEMORY_LISTEN"]
    assert variables("database_url") == ["MEMORY_DATABASE_URL", "DATABASE_URL"]
    assert variables("openai_api_key") == ["MEMORY_OPENAI_API_KEY", "OPENAI_API_KEY"]
    assert variables("openai_base_url") == ["MEMORY_OPENAI_BASE_URL", "OPENAI_BASE_URL"]
    aliased = {name for name, field in Settings.model_fields.items() if field.validation_alias is not None}
    assert aliased == {"database_url", "openai_api_key", "openai_base_url"}
    assert all(isinstance(Settings.model_fields[name].validation_alias, AliasChoices) for name in aliased)


def test_our_own_variable_wins_over_the_usual_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", "postgresql://usual")
    environment.setenv("MEMORY_DATABASE_URL", "postgresql://own")
    url = config.load().database_url
    assert url is not None
    assert url.get_secret_value() == "postgresql://own"


def test_overrides_win_over_both(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", "postgresql://usual")
    environment.setenv("MEMORY_WORKERS", "3")
    settings = config.load(database_url="postgresql://given", workers=2, threads=None)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://given"
    assert (settings.workers, settings.threads) == (2, None)


@pytest.mark.parametrize(
    ("given", "reads", "writes"),
    [
        ({}, 4, 4),
        ({"MEMORY_EMBEDDER": "openai", "MEMORY_OPENAI_API_KEY": "key"}, 16, 16),
        ({"MEMORY_THREADS": "9"}, 9, 9),
        ({"MEMORY_THREADS": "1", "MEMORY_WRITE_THREADS": "3"}, 1, 3),
    ],
)
def test_threads_are_few_unless_they_wait_for_a_provider(
    environment: pytest.MonkeyPatch, given: dict[str, str], reads: int, writes: int
) -> None:
    for name, value in given.items():
        environment.setenv(name, value)
    settings = config.load()
    assert (settings.threads_for_reads, settings.threads_for_writes) == (reads, writes)


def test_empty_variable_is_unset(environment: pytest.MonkeyPatch) -> None:
    defaults = config.load()
    for name in Settings.model_fields:
        environment.setenv(variables(name)[0], "")
    assert config.load() == defaults


def test_all_bad_values_are_reported_with_their_variables(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MEMORY_WORKERS", "many")
    environment.setenv("MEMORY_POOL_TIMEOUT_S", "0")
    environment.setenv("MEMORY_EMBEDDER", "magic")
    environment.setenv("MEMORY_LISTEN", "50051")
    environment.setenv("MEMORY_INSECURE", "perhaps")
    assert sorted(complaint()) == [
        "MEMORY_EMBEDDER: input should be 'local', 'openai' or 'none'",
        "MEMORY_INSECURE: input should be a valid boolean, unable to interpret input",
        "MEMORY_LISTEN: '50051' is not HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051",
        "MEMORY_POOL_TIMEOUT_S: input should be greater than 0",
        "MEMORY_WORKERS: input should be a valid integer, unable to parse string as an integer",
    ]


@pytest.mark.parametrize(
    ("set_", "expected"),
    [
        (
            {"POOL_MIN_SIZE": "9", "POOL_MAX_SIZE": "8"},
            ["MEMORY_POOL_MIN_SIZE (9) exceeds MEMORY_POOL_MAX_SIZE (8)"],
        ),
        ({"EMBEDDER": "none"}, ["MEMORY_EMBEDDING_DIMENSIONS is required with MEMORY_EMBEDDER=none"]),
        (
            {"EMBEDDER": "openai", "EMBEDDING_MODEL": "unheard-of", "OPENAI_API_KEY": "key"},
            ["MEMORY_EMBEDDING_DIMENSIONS is required with MEMORY_EMBEDDING_MODEL=unheard-of"],
        ),
        (
            {"EMBEDDING_MODEL": "text-embedding-3-small"},
            ["MEMORY_EMBEDDING_MODEL: the local embedder has only 'wordllama-l2-supercat-256'"],
        ),
        ({"EMBEDDING_DIMENSIONS": "255"}, ["MEMORY_EMBEDDING_DIMENSIONS: the local embedder has 256"]),
        (
            {"EMBEDDER": "openai"},
            ["MEMORY_OPENAI_API_KEY (or OPENAI_API_KEY) is required with MEMORY_EMBEDDER=openai"],
        ),
        (
            {"DIRECT_DATABASE_URL": "postgresql://h/d"},
            ["MEMORY_DIRECT_DATABASE_URL is set without MEMORY_DATABASE_URL"],
        ),
        (
            {"EMBEDDER": "none", "POOL_MIN_SIZE": "17", "DIRECT_DATABASE_URL": "postgresql://h/d"},
            [
                "MEMORY_POOL_MIN_SIZE (17) exceeds MEMORY_POOL_MAX_SIZE (16)",
                "MEMORY_EMBEDDING_DIMENSIONS is required with MEMORY_EMBEDDER=none",
                "MEMORY_DIRECT_DATABASE_URL is set without MEMORY_DATABASE_URL",
            ],
        ),
        ({"TLS_KEY": "k"}, ["MEMORY_TLS_CERTIFICATE and MEMORY_TLS_KEY need each other"]),
        (
            {"TLS_CLIENT_CA": "ca", "OPS_TLS": "true"},
            [
                "MEMORY_TLS_CLIENT_CA is set without MEMORY_TLS_CERTIFICATE",
                "MEMORY_OPS_TLS is set without MEMORY_TLS_CERTIFICATE",
            ],
        ),
        (
            {"AUTH": "keys,jwt"},
            [
                "MEMORY_JWT_ISSUER is required with MEMORY_AUTH=keys,jwt",
                "MEMORY_JWT_AUDIENCE is required with MEMORY_AUTH=keys,jwt",
            ],
        ),
        (
            {"AUTH": "jwt", "JWT_ISSUER": "accounts.example", "JWT_AUDIENCE": "memories"},
            ["MEMORY_JWT_JWKS_URL is required where MEMORY_JWT_ISSUER is not an https:// address"],
        ),
        (
            {"EMBEDDING_MODEL": "unheard-of", "EMBEDDING_DIMENSIONS": "7"},
            [
                "MEMORY_EMBEDDING_MODEL: the local embedder has only 'wordllama-l2-supercat-256'",
                "MEMORY_EMBEDDING_DIMENSIONS: the local embedder has 256",
            ],
        ),
    ],
    ids=str,
)
def test_values_that_disagree(environment: pytest.MonkeyPatch, set_: dict[str, str], expected: list[str]) -> None:
    for name, value in set_.items():
        environment.setenv(f"MEMORY_{name}", value)
    assert complaint() == expected


@pytest.mark.parametrize(
    ("set_", "model", "dimensions"),
    [
        ({"embedder": "none", "embedding_dimensions": 5}, "caller", 5),
        ({"embedder": "none", "embedding_model": "text-embedding-ada-002"}, "text-embedding-ada-002", 1536),
        ({"embedder": "local", "embedding_model": "wordllama-l2-supercat-256"}, "wordllama-l2-supercat-256", 256),
        ({"embedder": "openai", "openai_api_key": "key"}, "text-embedding-3-small", 1536),
        (
            {"embedder": "openai", "openai_api_key": "key", "embedding_model": "text-embedding-3-large"},
            "text-embedding-3-large",
            3072,
        ),
        ({"embedder": "openai", "openai_api_key": "key", "embedding_dimensions": 512}, "text-embedding-3-small", 512),
        (
            {
                "embedder": "openai",
                "openai_base_url": "http://127.0.0.1:11434/v1",
                "embedding_model": "nomic-embed-text",
                "embedding_dimensions": 768,
            },
            "nomic-embed-text",
            768,
        ),
    ],
    ids=str,
)
def test_model_and_dimensions_in_force(set_: dict[str, Any], model: str, dimensions: int) -> None:
    settings = config.load(**set_)
    assert (settings.model, settings.dimensions) == (model, dimensions)


@pytest.mark.parametrize("url", [f"postgresql://u:{HUSH}@[h/d", f"http://u:{HUSH}@h", f"user={HUSH} ="])
@pytest.mark.parametrize("variable", ["MEMORY_DATABASE_URL", "DATABASE_URL", "MEMORY_DIRECT_DATABASE_URL"])
def test_bad_database_url_is_not_quoted(environment: pytest.MonkeyPatch, variable: str, url: str) -> None:
    environment.setenv("MEMORY_DATABASE_URL", "postgresql://h/d")
    if variable == "DATABASE_URL":
        environment.delenv("MEMORY_DATABASE_URL")
    environment.setenv(variable, url)
    [line] = complaint()
    assert line.startswith(f"{variable}: is neither a postgresql:// URL nor libpq keywords")
    assert "percent-encoded" in line


def test_libpq_keywords_are_understood() -> None:
    assert not config.load(database_url="host=/tmp dbname=memory user=me").embedded


@pytest.mark.parametrize("url", ["ftp://h/v1", "127.0.0.1:1", "http://", "http://h:99999/v1", "http://[::1/v1"])
@pytest.mark.parametrize("variable", ["MEMORY_OPENAI_BASE_URL", "OPENAI_BASE_URL"])
def test_base_url_is_http(environment: pytest.MonkeyPatch, variable: str, url: str) -> None:
    environment.setenv(variable, url)
    [line] = complaint()
    assert line.startswith(f"{variable}: is not an http:// or https:// address")


@pytest.mark.parametrize(
    ("value", "expected"), [("true", "on"), ("False", "off"), ("1", "on"), ("0", "off"), ("authenticated",) * 2]
)
def test_reflection_may_still_be_a_boolean(environment: pytest.MonkeyPatch, value: str, expected: str) -> None:
    environment.setenv("MEMORY_REFLECTION", value)
    assert config.load(auth="keys").reflection == expected


def test_nobody_can_be_authenticated_for_reflection_where_nobody_is() -> None:
    [line] = complaint(reflection="authenticated")
    assert line == "MEMORY_REFLECTION=authenticated is set without MEMORY_AUTH or MEMORY_TLS_CLIENT_CA"
    tls = {"tls_certificate": "c.pem", "tls_key": "c.key", "tls_client_ca": "ca.pem"}
    assert config.load(reflection="authenticated", **tls).reflection == "authenticated"


@pytest.mark.parametrize("algorithms", ["none", "HS256", "RS256,HS256", ",", "rs256"])
def test_tokens_need_signatures_that_only_their_issuer_can_make(algorithms: str) -> None:
    [line] = complaint(jwt_algorithms=algorithms)
    assert line.startswith("MEMORY_JWT_ALGORITHMS: has to be of RS256")


@pytest.mark.parametrize("url", ["http://issuer.example/keys", "file:///etc/passwd", "issuer.example"])
def test_keys_of_issuers_are_fetched_over_https(url: str) -> None:
    [line] = complaint(jwt_jwks_url=url)
    assert line.startswith("MEMORY_JWT_JWKS_URL: is not an https:// address")


def test_secrets_are_not_shown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MEMORY_DATABASE_URL", f"postgresql://u:{HUSH}@h/d")
    environment.setenv("MEMORY_DIRECT_DATABASE_URL", f"postgresql://u:{HUSH}@h/d")
    environment.setenv("OPENAI_API_KEY", HUSH)
    settings = config.load()
    for shown in (repr(settings), str(settings), json.dumps(settings.model_dump(mode="json"))):
        assert HUSH not in shown


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50_051)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65_535)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),  # noqa: S104 - nothing is bound
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected
    assert config.load(listen=address, ops_listen=address).listen == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("50051", "HOST:PORT"),
        (":50051", "HOST:PORT"),
        ("localhost", "HOST:PORT"),
        ("localhost:", "HOST:PORT"),
        ("localhost:65536", "HOST:PORT"),
        ("localhost:-1", "HOST:PORT"),
        ("localhost:http", "HOST:PORT"),
        ("localhost:\N{SUPERSCRIPT TWO}", "HOST:PORT"),
        ("[]:50051", "HOST:PORT"),
        ("::1:50051", "in brackets"),
        ("[::1:50051", "in brackets"),
        ("off", "HOST:PORT"),
    ],
)
def test_what_is_no_address(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_address(address)
    [line] = complaint(listen=address)
    assert line.startswith("MEMORY_LISTEN: ")


def test_ops_listen_can_be_off(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MEMORY_OPS_LISTEN", "off")
    assert config.load().ops_listen == "off"


def test_misspelt_variables_are_pointed_out() -> None:
    assert unknown_variables(["MEMORY_WORKER", "MEMORY_ZZZZ", "MEMORY_WORKERS", "HOME", "WORKERS"]) == [
        "MEMORY_WORKER is not a setting; did you mean MEMORY_WORKERS?",
        "MEMORY_ZZZZ is not a setting",
    ]
    assert unknown_variables([variable for name in Settings.model_fields for variable in variables(name)]) == []


def test_settings_are_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_test_environment_is_clean() -> None:
    assert not [name for name in os.environ if name.startswith("MEMORY_")]
