"""Generates memory_service/v1 from protos/, or with --check tells whether the committed stubs are stale."""

import argparse
import filecmp
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ("memory_service/v1/memory.proto", "memory_service/v1/admin.proto")
# Reflection serves this: unlike the descriptors in the stubs it keeps the comments of the .proto files.
DESCRIPTORS = "memory_service/v1/memory.protoset"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
GENERATED = (*(proto.removesuffix(".proto") + suffix for proto in PROTOS for suffix in SUFFIXES), DESCRIPTORS)


def generate(out: Path) -> None:
    """Writes all generated files below `out`; raises SystemExit when protoc refuses the contract."""
    (out / DESCRIPTORS).parent.mkdir(parents=True, exist_ok=True)
    plugins = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'protos'}",
            f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            f"--descriptor_set_out={out / DESCRIPTORS}",
            "--include_imports",
            "--include_source_info",
            *PROTOS,
        ]
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")


def stale(fresh: Path) -> list[str]:
    """Returns the committed files that differ from those below `fresh`, or are missing."""
    return [
        name
        for name in GENERATED
        if not (ROOT / name).is_file() or not filecmp.cmp(ROOT / name, fresh / name, shallow=False)
    ]


def main() -> None:
    """Parses the command line and generates or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a stub is stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        if names := stale(Path(directory)):
            sys.exit(f"stale: {', '.join(names)}; run `make proto` and commit the result")


if __name__ == "__main__":
    main()
