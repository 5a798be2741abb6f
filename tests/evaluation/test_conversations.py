"""The conversation set is well formed."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from evaluation import conversations
from evaluation.judged import Document, JudgedSet

MOST_SHARED_WORDS = 0.7


@pytest.fixture(scope="module")
def judged() -> JudgedSet:
    """The set as committed."""
    return conversations.read()


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9-]{4,}", text.lower()))


def test_ids_are_there_once(judged: JudgedSet) -> None:
    for ids in ([document.id for document in judged.documents], [question.number for question in judged.questions]):
        assert max(Counter(ids).values()) == 1
    assert [question.number for question in judged.questions] == list(range(1, len(judged.questions) + 1))


def test_evidence_is_among_the_turns_of_the_one_who_asks(judged: JudgedSet) -> None:
    owners = {document.id: document.user for document in judged.documents}
    for question in judged.questions:
        assert question.gains
        assert {owners.get(evidence) for evidence in question.gains} == {question.user}, question.number


def test_conversations_belong_to_one_user_and_have_15_to_25_turns(judged: JudgedSet) -> None:
    turns: dict[str, list[Document]] = {}
    for document in judged.documents:
        turns.setdefault(document.conversation, []).append(document)
    assert len(turns) == 12
    for found in turns.values():
        assert len({document.user for document in found}) == 1
        assert 15 <= len(found) <= 25
        times = [document.created_at for document in found if document.created_at is not None]
        assert len(times) == len(found)
        assert all(before < after for before, after in pairwise(times))
    assert len(judged.by_user()) == 3


def test_each_category_has_its_share_in_both_halves(judged: JudgedSet) -> None:
    assert {question.category for question in judged.questions} == set(conversations.CATEGORIES)
    for category in conversations.CATEGORIES:
        of_it = [question for question in judged.questions if question.category == category]
        tuning = sum(question.tunes for question in of_it)
        assert len(of_it) >= 10
        assert abs(2 * tuning - len(of_it)) <= 2


def test_multi_hop_questions_need_several_turns(judged: JudgedSet) -> None:
    for question in judged.questions:
        if question.category == "multi-hop":
            assert len(question.gains) > 1


def test_questions_do_not_repeat_their_answers(judged: JudgedSet) -> None:
    texts = {document.id: document.text for document in judged.documents}
    for question in judged.questions:
        if question.category == "names and codes":
            continue  # those repeat the name, which is their point
        asked = words(question.text)
        for evidence in question.gains:
            assert len(asked & words(texts[evidence])) <= MOST_SHARED_WORDS * len(asked), question.text


def test_questions_are_asked_after_everything(judged: JudgedSet) -> None:
    assert judged.as_of is not None
    for document in judged.documents:
        assert document.created_at is not None
        assert document.created_at < judged.as_of
        assert document.importance is None or 1 <= document.importance <= 10
