"""What all share that stand in front of another embedder: its model is theirs, and it is closed with them."""

from typing import Generic, Protocol, TypeVar


class Inner(Protocol):
    """What a layer has to know of whatever is behind it."""

    @property
    def model(self) -> str:
        """The name of the model."""
        ...

    @property
    def dimensions(self) -> int:
        """The length of the vectors."""
        ...

    @property
    def cacheable(self) -> bool:
        """Whether looking a vector up costs less than computing it again."""
        ...

    def close(self) -> None:
        """Releases connections and threads."""
        ...


T = TypeVar("T", bound=Inner)


class Layer(Generic[T]):
    """Answers for an embedder what does not depend on how it is asked; subclasses say how it is."""

    def __init__(self, inner: T) -> None:
        self._inner = inner

    @property
    def model(self) -> str:
        """See Embedder."""
        return self._inner.model

    @property
    def dimensions(self) -> int:
        """See Embedder."""
        return self._inner.dimensions

    @property
    def cacheable(self) -> bool:
        """See Embedder."""
        return self._inner.cacheable

    def close(self) -> None:
        """Closes what is behind it as well."""
        self._inner.close()
