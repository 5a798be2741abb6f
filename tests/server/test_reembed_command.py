"""`memory-service reembed`: how it is interrupted and goes on, what it waits for, what it tells and what it refuses."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from db.errors import ReembeddingConflict
from db.pool import Database, PoolOptions
from db.schema import EmbeddingSpace
from memory_service.__main__ import main
from memory_service.config import ConfigurationError
from memory_service.embedding.errors import EmbedderMisconfigured
from memory_service.messages.drafts import CALLER_MODEL
from tests.api.waiting import eventually
from tests.embedding.provider import FORBIDDEN, Provider, Status, Tamper
from tests.fix_server import COMMAND, environment
from tests.server.reembedding_process import ARGUMENTS, LIVE, TARGET, reembed, settings_for
from tests.storage.sample_memories import new_memory, store, unit

BATCH = 4


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Knows both models."""
    with Provider() as provider:
        yield provider


@pytest.fixture
def settings(provider: Provider, database_url: str) -> dict[str, Any]:
    """Of the servers, on the old model."""
    return settings_for(provider, database_url)


def fill(url: str, *contents: str, space: EmbeddingSpace = LIVE, model: str | None = None) -> None:
    """Stores memories that have embeddings of the space that the database is in."""
    with closing(Database(url, PoolOptions(min_size=1, max_size=2))) as database:
        database.open()
        embedding = unit(dimensions=space.dimensions)
        memories = [
            new_memory(content=content, embedding=embedding, embedding_model=model or space.model)
            for content in contents
        ]
        store(database, "ada", *memories)


def rows(url: str, query: Any) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def audited(url: str) -> list[Any]:
    return rows(url, "SELECT method, code FROM audit_log ORDER BY at")


def stored_count(url: str) -> int:
    try:
        [(count,)] = rows(url, "SELECT count(standby_embedding) FROM memory_entries")
    except psycopg.errors.UndefinedColumn:
        return 0
    return int(count)


def slowly(answer: Any) -> Any:
    time.sleep(0.1)
    return answer


def interrupted(settings: dict[str, Any], url: str, number: int) -> tuple[int, str]:
    """Starts the command, sends it a signal once it has stored something more; returns its exit status and output."""
    before = stored_count(url)
    with subprocess.Popen(
        [*COMMAND, "reembed", *ARGUMENTS, "--batch", str(BATCH)],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        eventually(lambda: stored_count(url) > before, timeout_s=40)
        process.send_signal(number)
        output, _ = process.communicate(timeout=40)
    return process.returncode, output


def test_it_goes_on_where_it_was_stopped_or_killed(
    settings: dict[str, Any], database_url: str, provider: Provider
) -> None:
    texts = [f"harbour {number}" for number in range(60)]
    fill(database_url, *texts)
    provider.fail(Tamper(slowly), always=True)
    status, said = interrupted(settings, database_url, signal.SIGTERM)
    assert (status, "run again it goes on" in said) == (128 + signal.SIGTERM, True)
    assert stored_count(database_url) % BATCH == 0, "whole batches"
    status, _ = interrupted(settings, database_url, signal.SIGKILL)
    assert status == -signal.SIGKILL
    done = stored_count(database_url)
    assert 0 < done < len(texts)
    # The one that was killed could not say how it ended.
    assert audited(database_url) == [("reembed move", code) for code in (None, "ABORTED", None)]

    provider.recover()
    provider.requests.clear()
    status, lines = reembed(settings)
    assert status == 0
    assert lines[0].startswith(f"embedded {len(texts) - done} memories")
    asked_again = [text for request in provider.requests for text in request.texts if text != "memory"]
    assert len(asked_again) == len(texts) - done
    assert rows(database_url, "SELECT DISTINCT embedding_model, vector_dims(embedding) FROM memory_entries") == [
        (TARGET.model, TARGET.dimensions)
    ]


def test_an_outage_is_waited_out_and_refused_texts_are_left_out(
    settings: dict[str, Any], database_url: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_service.reembedding.backfill.FIRST_PAUSE_S", 0.01)
    fill(database_url, "harbour", f"{FORBIDDEN} ship", " \n", "anchor")
    nonsense = Tamper(lambda answer: {**answer, "data": [{**one, "embedding": [0.0] * 12} for one in answer["data"]]})
    fine = Tamper(lambda answer: answer)
    provider.fail(fine, Status(503), Status(429), Status(503))  # the first request tries the model
    status, said = reembed(settings)
    assert status == 0, said
    assert said[-1].startswith("`memory-service reembed --clean-up`")
    assert any(line.startswith("2 memories have none") for line in said)
    found = dict(rows(database_url, "SELECT content, coalesce(embedding_error, '') FROM memory_entries"))
    assert found["harbour"] == found["anchor"] == ""
    assert found[" \n"] == "has nothing to embed"
    assert "refused" in found[f"{FORBIDDEN} ship"]

    fill(database_url, "new since", space=TARGET)
    provider.fail(nonsense)  # of a batch, though the model can be used: its texts are asked for one by one
    assert reembed(settings, "switch-back")[0] == 0
    new_since = "SELECT embedding_model FROM memory_entries WHERE content = 'new since' AND embedding IS NOT NULL"
    assert rows(database_url, new_since) == [(LIVE.model,)]


@pytest.mark.parametrize("fault", [Status(401), Status(404)])
def test_a_model_that_cannot_be_used_ends_it_before_anything_changes(
    settings: dict[str, Any], database_url: str, provider: Provider, fault: Status
) -> None:
    fill(database_url, "harbour")
    provider.fail(fault, always=True)
    with pytest.raises(EmbedderMisconfigured):
        reembed(settings)
    assert rows(database_url, "SELECT * FROM reembedding") == []


def test_a_dry_run_says_what_there_is_to_do(settings: dict[str, Any], database_url: str, provider: Provider) -> None:
    fill(database_url, "harbour", "a ship", " ")
    fill(database_url, "brought along", model=CALLER_MODEL)
    status, said = reembed(settings, "dry-run", embedder="openai", model=TARGET.model, dimensions=12)
    assert status == 0
    assert said[0] == f"from {LIVE} to {TARGET}, made by the embedder openai"
    assert said[1] == "4 memories with 27 B of text, some 7 tokens"
    assert said[2].startswith("1 have nothing to embed")
    assert said[3].startswith("1 have an embedding that their caller brought")
    assert said[4:] == ["nothing was changed"]
    assert rows(database_url, "SELECT * FROM reembedding") == []
    assert provider.requests == []


def test_status_and_the_steps_one_by_one(settings: dict[str, Any], database_url: str) -> None:
    fill(database_url, "harbour", "ship")
    assert reembed(settings, "status") == (0, [f"no move is under way; the embeddings are of {LIVE}"])
    with pytest.raises(ReembeddingConflict, match="no move"):
        reembed(settings, "switch")
    status, said = reembed(settings, no_switch=True)
    assert (status, said[-1]) == (0, "all is ready; `memory-service reembed --switch` switches")
    _, said = reembed(settings, "status")
    assert re.match(rf"moving from {re.escape(str(LIVE))} to .*: 2 of 2 memories embedded, 0 refused, 0 to go", said[0])
    with pytest.raises(ReembeddingConflict, match="has not been switched yet"):
        reembed(settings, "clean-up")
    with pytest.raises(ReembeddingConflict, match="--cancel"):
        reembed(settings, dimensions=16, embedder="openai", model=TARGET.model)

    assert reembed(settings, "cancel", confirm=lambda _: False)[0] == 1
    assert reembed(settings, "cancel", confirm=lambda _: True)[0] == 0
    assert reembed(settings, "status")[1] == [f"no move is under way; the embeddings are of {LIVE}"]

    assert reembed(settings)[0] == 0
    assert reembed(settings, "status")[1][0].startswith(f"moved from {LIVE} to {TARGET}")
    assert reembed(settings)[1] == [
        f"refused: the move to {TARGET} has been switched; end it with --clean-up or --switch-back"
    ]
    questions: list[str] = []

    def refuse(question: str) -> bool:
        questions.append(question)
        return False

    assert reembed(settings, "clean-up", confirm=refuse)[0] == 1
    assert questions == [f"drop the embeddings of {LIVE}? There is no way back then."]


def test_more_left_to_embed_than_allowed_keeps_it_from_switching(settings: dict[str, Any], database_url: str) -> None:
    callers = {**settings, "embedder": "none"}
    fill(database_url, "harbour")
    assert reembed(callers)[0] == 0
    fill(database_url, "since", space=TARGET)
    status, said = reembed(callers, "switch-back", max_pending=0)
    assert status == 1
    assert said[-1].startswith("refused: 1 memories or more would wait")


def test_what_cannot_be_moved_to_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cannot be embedded anew without an embedder"):
        reembed(settings, embedder="none", dimensions=12)
    with pytest.raises(ConfigurationError, match="MEMORY_EMBEDDING_DIMENSIONS is required"):
        reembed(settings, embedder="openai", model="of-unknown-size")
    with pytest.raises(ReembeddingConflict, match="already"):
        reembed(settings, embedder="openai", model=LIVE.model, dimensions=LIVE.dimensions)
    with pytest.raises(ConfigurationError, match="have to name these"):
        reembed({**settings, "embedding_model": "another"})
    with pytest.raises(ReembeddingConflict, match="name the model"):
        reembed(settings, model=None)
    assert reembed(settings, confirm=lambda _: False)[0] == 1


@pytest.mark.parametrize("arguments", [["--dimensions", "0"], ["--switch", "--cancel"], ["--embedder", "x"]])
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reembed", *arguments])
    assert ended.value.code == 2
    assert "usage: memory-service reembed" in capsys.readouterr().err


def test_help_says_what_it_costs_and_how_it_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reembed", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--switch-back", "--clean-up", "transaction pooler", "130 or 143"))
