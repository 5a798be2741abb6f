"""The committed stubs serve clients on protobuf 6 as well, without this service's own dependencies."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memory_service.v1 import memory_pb2
from tests.fix_server import ServerProcess

# The oldest release of protobuf 6 and of grpcio that the stubs are made for, see the Makefile.
PACKAGES = ("protobuf==6.33.5", "grpcio==1.81.1", "googleapis-common-protos>=1.70,<2")

CLIENT = """
import json, sys
import google.protobuf
import grpc
from google.rpc import error_details_pb2, status_pb2
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

address, user_id = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    stub = MemoryServiceStub(channel)
    embedding = pb.Vector(floats=pb.FloatArray(values=[1, 2, 3, 4, 5, 6, 7, 8]))
    memory = pb.NewMemory(content="from protobuf 6", embedding=embedding)
    memory.metadata.update({"k": [1, "two", None]})
    stored = stub.InsertVector(pb.InsertVectorRequest(user_id=user_id, memory=memory), timeout=20).memory
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=embedding, view=pb.MEMORY_VIEW_FULL)
    [found] = stub.SearchSimilar(request, timeout=20).results
    try:
        stub.GetVector(pb.GetVectorRequest(user_id=user_id, id="7"), timeout=20)
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
print(json.dumps({
    "protobuf": google.protobuf.__version__,
    "grpcio": grpc.__version__,
    "same": found.memory.id == stored.id,
    "content": found.memory.content,
    "metadata": list(found.memory.metadata["k"]),
    "score": round(found.score, 2),
    "reason": info.reason,
}))
"""


@pytest.fixture(scope="module")
def client_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client's packages and the stubs, and nothing else of this service."""
    folder = tmp_path_factory.mktemp("protobuf6")
    options = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode != 0:
        pytest.skip(f"protobuf 6 cannot be installed here: {done.stderr.strip()[-200:]}")
    stubs = Path(memory_pb2.__file__).parent
    shutil.copytree(stubs, folder / "memory_service" / "v1", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.long
def test_a_client_on_protobuf_6_makes_a_round_trip(server: ServerProcess, client_folder: Path, user_id: str) -> None:
    # -S: no site-packages, so that nothing but the folder is there to import.
    command = [sys.executable, "-S", "-W", "error", "-c", CLIENT, server.address, user_id]
    environment = {"PYTHONPATH": str(client_folder), "PATH": os.environ["PATH"]}

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment, cwd="/")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "protobuf": "6.33.5",
        "grpcio": "1.81.1",
        "same": True,
        "content": "from protobuf 6",
        "metadata": [1, "two", None],
        "score": 1.0,
        "reason": "INVALID_FIELD",
    }
