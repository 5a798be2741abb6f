"""The Cranfield files are read right, traps included, on a small collection of the same format."""

from pathlib import Path

import pytest

from evaluation import cranfield

DOCUMENTS = """\
.I 1
.T
how birds
glide .
.A
somebody
.B
a journal, 1958 .
.W
how birds
glide .
  wings of birds .
.I 2
.T
.A
.B
.W
.I 3
.T
sails .
.A
.B
.W
sails . canvas in the wind .
"""
QUESTIONS = """\
.I 001
.W
what do wings
do .
.I 004
.W
which cloth .
.I 009
.W
who asks .
"""
JUDGMENTS = "1 0 1 4\n1 0  3 1\n1 0 2 5\n2 0 3 2\n2 0 77 3\n3 0 1 5\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with three abstracts and three questions."""
    (tmp_path / "cran.all.1400").write_text(DOCUMENTS)
    (tmp_path / "cran.qry").write_text(QUESTIONS)
    (tmp_path / "qrels.trec").write_text(JUDGMENTS)
    return tmp_path


def test_a_memory_is_title_and_text(place: Path) -> None:
    documents = cranfield.read(place).documents
    assert [(document.id, document.text) for document in documents] == [
        ("1", "how birds glide . how birds glide . wings of birds ."),
        ("3", "sails . sails . canvas in the wind ."),
    ]
    assert {document.user for document in documents} == {cranfield.USER}


def test_questions_are_numbered_by_position(place: Path) -> None:
    questions = cranfield.read(place).questions
    assert [(question.number, question.text) for question in questions] == [
        (1, "what do wings do ."),
        (2, "which cloth ."),
    ]


def test_grade_5_is_left_out_and_missing_documents_still_count(place: Path) -> None:
    first, second = cranfield.read(place).questions
    assert first.gains == {"1": 4.0, "3": 1.0}
    assert second.gains == {"3": 2.0, "77": 3.0}


def test_what_is_left_out_is_told(place: Path) -> None:
    assert cranfield.read(place).left_out == ["abstract 2: empty", "question 3: no judgments"]


@pytest.mark.parametrize("line", ["4 0 1 1", "0 0 1 1", "1 0 1 0", "1 0 1 6"])
def test_judgments_that_cannot_be_are_noticed(place: Path, line: str) -> None:
    (place / "qrels.trec").write_text(f"{JUDGMENTS}{line}\n")
    with pytest.raises(ValueError, match="qrels"):
        cranfield.read(place)


def test_folder_needs_the_judgments(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_CRANFIELD", str(place))
    assert cranfield.folder() == place
    (place / "qrels.trec").unlink()
    assert cranfield.folder() is None
