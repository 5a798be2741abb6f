"""The project's own set: conversations of three users about everyday things, and questions about them.

Each turn is a memory. A question names the turns that answer it, all of them alike relevant; it is asked after the last
conversation, and seldom in the words of its answer. Categories:

- single-hop: the answer is one turn.
- paraphrase: it says so in other words than the question.
- temporal/update: things have changed, and what holds now is asked.
- multi-hop: several turns together are the answer.
- neighbour-context: the turn is understood only from those before it, which have the words of the question.
- names and codes: the question has a name or a number that means nothing by itself.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path

from evaluation.judged import Document, JudgedSet, Question

DATA = Path(__file__).parent / "data"
CATEGORIES = ("single-hop", "paraphrase", "temporal/update", "multi-hop", "neighbour-context", "names and codes")
ASKED_AFTER = timedelta(days=1)


def read(place: Path = DATA) -> JudgedSet:
    """Returns the set in folder `place`."""
    conversations = json.loads((place / "conversations.json").read_text(encoding="utf-8"))
    documents = [
        Document(
            id=turn["id"],
            user=conversation["user"],
            conversation=conversation["id"],
            text=turn["text"],
            created_at=datetime.fromisoformat(turn["at"]),
            importance=turn.get("importance"),
        )
        for conversation in conversations
        for turn in conversation["turns"]
    ]
    questions = [
        Question(
            number=question["id"],
            user=question["user"],
            text=question["text"],
            gains=dict.fromkeys(question["evidence"], 1.0),
            category=question["category"],
        )
        for question in json.loads((place / "questions.json").read_text(encoding="utf-8"))
    ]
    last = max(document.created_at for document in documents if document.created_at)
    return JudgedSet("conversations", documents, questions, as_of=last + ASKED_AFTER)
