"""The documentation says what is so: its tables are current, and what it names exists."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict

from examples.client import RETRY
from memory_service.config import CLIENT_VARIABLES, Settings, variables
from memory_service.v1 import memory_pb2 as pb
from scripts.generate_docs import README, ROOT, TABLES, fill

DOCUMENTS = [
    *(README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RPCS = pb.DESCRIPTOR.services_by_name["MemoryService"].methods_by_name

FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)+/?")
CALL = re.compile(r"-d '(\{.*?\})'.*?memory_service\.v1\.MemoryService/(\w+)", re.DOTALL)


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def code_of(document: Path) -> str:
    """Returns what stands in blocks of a named language and between backquotes."""
    text = document.read_text(encoding="utf-8")
    blocks = [block for language, block in FENCED.findall(text) if language]
    return "\n".join([*blocks, *INLINE.findall(FENCED.sub("", text))])


def python_blocks() -> Iterator[str]:
    for document in DOCUMENTS:
        for language, block in FENCED.findall(document.read_text(encoding="utf-8")):
            if language == "python":
                yield block


@pytest.mark.parametrize("document", TABLES, ids=name_of)
def test_generated_tables_are_current(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert fill(text, document) == text, "run `make docs`"


def test_stale_table_is_noticed() -> None:
    text = README.read_text(encoding="utf-8")
    stale = text.replace("| `MEMORY_WORKERS` | `1` |", "| `MEMORY_WORKERS` | `7` |")
    assert stale != text
    assert fill(stale) == text


def test_missing_markers_are_noticed() -> None:
    with pytest.raises(ValueError, match="settings"):
        fill("a README without tables")


def test_tables_hold_no_value_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("MEMORY_DELETED_RETENTION_DAYS", "3")
    monkeypatch.setenv("MEMORY_DATA_DIR", "/somewhere/else")
    text = README.read_text(encoding="utf-8")
    assert fill(text) == text


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code_of(document))) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(FENCED.sub("", document.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


def anchors_of(document: Path) -> set[str]:
    """Returns what links can lead to within a document."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [README, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_named_files_exist(document: Path) -> None:
    tops = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    named = {path.strip("/") for path in PATH.findall(code_of(document)) if path.split("/")[0] in tops}
    # Compilers of protos are given paths below protos/.
    roots = (ROOT, ROOT / "protos")
    missing = {path for path in named if "NNNN" not in path and not any(list(root.glob(path)) for root in roots)}
    assert not missing
    assert named, "the pattern for paths no longer matches"


def test_modules_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [tree] = (block for language, block in FENCED.findall(text) if not language)
    folder = ROOT
    found = 0
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = ROOT / line.split("/")[0]
            assert folder.is_dir(), line
        for module in re.findall(r"[a-z_]\w*", line[:19]) if line.startswith("  ") else []:
            assert (folder / module).is_dir() or (folder / f"{module}.py").is_file(), f"{folder.name}/{module}"
            found += 1
    assert found > 20, "the layout of the tree has changed"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_named_variables_are_settings(document: Path) -> None:
    settings = CLIENT_VARIABLES | {variable for name in Settings.model_fields for variable in variables(name)}
    reasons = {name.removeprefix("ERROR_REASON_") for name in pb.ErrorReason.keys()}  # noqa: SIM118 - no mapping
    assert set(re.findall(r"MEMORY_[A-Z][A-Z_]*[A-Z]", code_of(document))) <= settings | reasons


def test_readme_presents_every_rpc() -> None:
    assert set(RPCS) <= set(INLINE.findall(README.read_text(encoding="utf-8")))


def test_python_blocks_compile() -> None:
    blocks = list(python_blocks())
    assert blocks
    for block in blocks:
        ast.parse(block)


@pytest.mark.parametrize("name", ["README.md", "docs/clients.md", "docs/security.md"])
def test_calls_in_the_documents_fit_the_contract(name: str) -> None:
    calls = CALL.findall((ROOT / name).read_text(encoding="utf-8"))
    assert calls
    for data, rpc in calls:
        fields = json.loads(data)
        if isinstance(mask := fields.get("update_mask"), dict):  # as grpcurl reads it, and nobody else
            fields["update_mask"] = FieldMask(paths=mask["paths"]).ToJsonString()
        message = ParseDict(fields, getattr(pb, RPCS[rpc].input_type.name)())
        assert message.user_id, rpc


def test_retries_are_the_same_in_every_language() -> None:
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    [in_json] = (block for language, block in FENCED.findall(text) if language == "json")
    [in_go] = re.findall(r"const retry = `(.*?)`", text, re.DOTALL)
    assert json.loads(in_json) == json.loads(in_go) == RETRY


def test_example_memories_fit_the_contract() -> None:
    lines = (ROOT / "examples" / "memories.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    users = {row.pop("user_id") for row in rows}
    memories = [ParseDict(row, pb.NewMemory()) for row in rows]
    assert users == {"amara", "jonas", "mei"}
    assert len({memory.content for memory in memories}) == len(memories) > 250
    assert all(1 <= memory.importance <= 10 and memory.metadata["topic"] for memory in memories)
