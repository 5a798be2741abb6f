"""A small part of the conversation set, stored in a running service and asked of it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from evaluation import conversations, quality, targets, variants
from evaluation.asking import ForeignResult, Library
from evaluation.judged import JudgedSet
from memory_service.v1 import memory_pb2 as pb
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

QUESTIONS = 12


@pytest.fixture(scope="module")
def local(databases: Databases) -> Iterator[ServerProcess]:
    """A service with the local embedder."""
    with running_servers(databases) as start:
        yield start(embedder="local")


def small_set(suffix: str) -> JudgedSet:
    """Returns some questions of two users, and all that these users said; users' names end in `suffix`."""
    whole = conversations.read()
    names = whole.questions[0].user, whole.questions[-1].user
    documents = [
        replace(document, user=document.user + suffix) for document in whole.documents if document.user in names
    ]
    of_both = [question for question in whole.questions if question.user in names]
    some = of_both[: QUESTIONS // 2] + of_both[-QUESTIONS // 2 :]
    questions = [replace(question, user=question.user + suffix) for question in some]
    return JudgedSet(whole.name, documents, questions, as_of=whole.as_of)


@pytest.mark.long
def test_every_mode_is_scored(local: ServerProcess) -> None:
    judged = small_set("-scored")
    stored: list[int] = []

    def count() -> None:
        recent = [local.stub.GetStats(pb.GetStatsRequest(user_id=user)) for user in judged.by_user()]
        stored.append(sum(stats.live_count for stats in recent))

    figures: dict[str, Any] = quality.measure(local.stub, judged, after_storing=count)
    assert stored == [len(judged.documents)]
    assert judged.as_of is not None
    compared = [variant.name for variant in (*variants.modes(), *variants.of_conversations(judged.as_of))]
    assert list(figures["modes"]) == compared
    for mode in figures["modes"].values():
        assert 0 < mode["all"]["ndcg_at_10"] <= 1
        assert mode["all"]["questions"] == QUESTIONS
        assert mode["tuning"]["questions"] + mode["held_out"]["questions"] == QUESTIONS
        assert 0 < mode["p50_ms"] <= mode["p95_ms"]
    swept = {point["value"]: point["all"] for point in figures["dense_weight"]["points"]}
    assert list(swept) == list(variants.DENSE_WEIGHTS)
    assert figures["default_dense_weight"] in swept
    assert swept[figures["default_dense_weight"]] == pytest.approx(figures["modes"]["HYBRID"]["all"]["ndcg_at_10"])
    assert [target.name for target in targets.of("conversations", figures)] == [
        "conversations, HYBRID, NDCG@10, against the better of its sides"
    ]


def test_questions_find_their_answers_and_count_no_access(local: ServerProcess) -> None:
    judged = small_set("-found")
    library = Library(local.stub, judged)
    asked = library.ask(judged.questions, [variants.LEXICAL])[variants.LEXICAL.name]
    by_name = {question.text: question for question in judged.questions}
    code = by_name["What is WX-55120?"]
    assert asked.rankings[code.number][0] in code.gains
    assert len(asked.latencies_s) == QUESTIONS
    recent = local.stub.GetRecent(pb.GetRecentRequest(user_id=code.user, page_size=1_000))
    assert {memory.access_count for memory in recent.memories} == {0}
    assert len(recent.memories) == len(judged.by_user()[code.user])


def test_a_result_of_elsewhere_is_noticed(local: ServerProcess) -> None:
    judged = small_set("-foreign")
    library = Library(local.stub, judged)
    question = judged.questions[0]
    stray = pb.NewMemory(content=question.text)
    local.stub.InsertVector(pb.InsertVectorRequest(user_id=question.user, memory=stray))
    with pytest.raises(ForeignResult, match=question.user):
        library.search(question, variants.DENSE)
