"""The Cranfield collection as a judged set: its abstracts, its questions, and graded judgments.

It is not part of the repository: BENCHMARK_CRANFIELD names its folder, as for the benchmark. Traps of its files:

- The numbers in `cran.qry` have gaps; judgments refer to a question's position in the file, from 1.
- Grades are 1 (least) to 4 (complete answer). 5 stands once a question with a disputed meaning and is left out.
- Two abstracts are empty and cannot be stored. The text of the others repeats their title.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from evaluation.judged import Document, JudgedSet, Question
from harness import cranfield
from harness.cranfield import ABSTRACTS, QUESTIONS

USER = "cranfield"
JUDGMENTS = "qrels.trec"
DISPUTED = 5
FIELD = re.compile(r"^\.([TABW])[ \t]*$", re.MULTILINE)


def folder() -> Path | None:
    """Returns where the collection lies, judgments included, or None where it does not."""
    place = cranfield.folder()
    return place if place is not None and (place / JUDGMENTS).is_file() else None


def read(place: Path) -> JudgedSet:
    """Returns the collection: one memory an abstract, its title and then its text.

    Raises:
        ValueError: When a judgment is of a question that is not there, or a grade is none.
    """
    documents, empty = [], []
    for number, fields in _entries((place / ABSTRACTS).read_text(encoding="utf-8")):
        text = f"{fields.get('T', '')} {fields.get('W', '')}".strip()
        if text:
            documents.append(Document(id=number, user=USER, text=text))
        else:
            empty.append(number)
    texts = [fields["W"] for _, fields in _entries((place / QUESTIONS).read_text(encoding="utf-8"))]
    gains = _judgments((place / JUDGMENTS).read_text(encoding="utf-8"), questions=len(texts))
    questions = [
        Question(number=number, user=USER, text=text, gains=gains[number])
        for number, text in enumerate(texts, start=1)
        if gains[number]
    ]
    left_out = [f"abstract {number}: empty" for number in empty]
    left_out += [f"question {number}: no judgments" for number, found in gains.items() if not found]
    return JudgedSet("cranfield", documents, questions, left_out=left_out)


def _entries(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields number and fields of each entry; fields with their white space made single blanks."""
    pieces = re.split(r"^\.I[ \t]+(\d+)[ \t]*$", text, flags=re.MULTILINE)[1:]
    for number, body in zip(pieces[::2], pieces[1::2], strict=True):
        _, *fields = FIELD.split(body)
        yield number, {name: " ".join(value.split()) for name, value in zip(fields[::2], fields[1::2], strict=True)}


def _judgments(text: str, *, questions: int) -> dict[int, dict[str, float]]:
    gains: dict[int, dict[str, float]] = {number: {} for number in range(1, questions + 1)}
    for line in filter(str.strip, text.splitlines()):
        question, _, document, grade = line.split()
        if int(question) not in gains:
            raise ValueError(f"{JUDGMENTS}: there is no question {question}")
        if not 1 <= int(grade) <= DISPUTED:
            raise ValueError(f"{JUDGMENTS}: {grade} is no grade")
        if int(grade) != DISPUTED:
            gains[int(question)][document] = float(grade)
    return gains
