"""The parts of an evaluation: each starts a service on a database of its own, and measures one thing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from evaluation import conversations, cranfield, quality, speed
from evaluation.judged import JudgedSet
from evaluation.sizes import Sizes
from harness.attempt import NotPossible
from harness.channel import open_stub
from harness.cranfield import VARIABLE, read_sentences
from harness.instance import Instance, settle
from harness.outcome import Figures
from harness.service_process import ServiceProcess
from memory_service.settings.embedding import DEFAULT_MODELS
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

NAMES = ("cranfield", "conversations", "speed")
ABSENT = f"the Cranfield collection is not at hand ({VARIABLE} names its folder)"


def run(name: str, instance: Instance, sizes: Sizes) -> Figures:
    """Runs one part.

    Raises:
        NotPossible: What it needs is not at hand.
    """
    if name == "conversations":
        return _quality(instance, name, conversations.read())
    place = cranfield.folder()
    if place is None:
        raise NotPossible(ABSENT)
    judged = cranfield.read(place)
    if name == "cranfield":
        return _quality(instance, name, judged)
    with _service(instance, name) as (stub, settled):
        return speed.measure(
            stub,
            sentences=read_sentences(place),
            questions=judged.questions,
            sizes=sizes,
            after_storing=settled,
        )


def _quality(instance: Instance, name: str, judged: JudgedSet) -> Figures:
    with _service(instance, name) as (stub, settled):
        return quality.measure(stub, judged, after_storing=settled)


@contextmanager
def _service(instance: Instance, database: str) -> Iterator[tuple[MemoryServiceStub, Callable[[], None]]]:
    """Yields the stub of a service with the local embedder and otherwise its defaults.

    Beside it stands what leaves its tables as autovacuum would: searches of tables never analyzed are slow.
    """
    model, dimensions = DEFAULT_MODELS["local"]
    if dimensions is None:
        raise TypeError("the local model has a fixed number of dimensions")
    url = instance.create(database, dimensions=dimensions, model=model)
    with ServiceProcess(url, dimensions=dimensions, embedder="local") as service, open_stub(service.address) as stub:
        yield stub, partial(settle, url)
    instance.drop(database)
