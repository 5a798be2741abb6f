"""The texts of the Cranfield collection: abstracts on aerodynamics, and questions that were asked of them.

The collection is not part of the repository. BENCHMARK_CRANFIELD names its folder (cran.all.1400, cran.qry);
unset, ../shared/data/cranfield is looked for beside the repository.
"""

import os
import re
from pathlib import Path

VARIABLE = "BENCHMARK_CRANFIELD"
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "cranfield"
ABSTRACTS, QUESTIONS = "cran.all.1400", "cran.qry"
MIN_WORDS = 5


def folder() -> Path | None:
    """Returns where the collection lies, or None where there is none."""
    named = os.environ.get(VARIABLE)
    place = Path(named) if named else DEFAULT
    return place if (place / ABSTRACTS).is_file() and (place / QUESTIONS).is_file() else None


def read_sentences(place: Path) -> list[str]:
    """Returns the distinct sentences of the abstracts."""
    found = [
        sentence.strip()
        for body in _bodies(place / ABSTRACTS)
        for sentence in re.split(r"\s\.(?:\s+|$)", body)
        if len(sentence.split()) >= MIN_WORDS
    ]
    return list(dict.fromkeys(found))


def read_questions(place: Path) -> list[str]:
    """Returns the questions."""
    return _bodies(place / QUESTIONS)


def _bodies(path: Path) -> list[str]:
    """Returns the text of each entry, its white space made single blanks."""
    entries = re.split(r"^\.I \d+\n", path.read_text(), flags=re.MULTILINE)[1:]
    return [" ".join(entry.split(".W\n", 1)[1].split()) for entry in entries if ".W\n" in entry]
