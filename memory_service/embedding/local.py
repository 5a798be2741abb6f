"""The local embedder: a small static model that runs in this process, on the CPU, without a network."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.embedding.batches import batches
from memory_service.embedding.blank import refuse_blank
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbedderUnavailable
from memory_service.settings.embedding import DEFAULT_MODELS

MODEL = DEFAULT_MODELS["local"][0]
DIMENSIONS = 256

# One character is at most four tokens (its UTF-8 bytes) and a token costs the tokenizer 105 bytes (measured), so
# tokenizing takes 28 MB at worst.
_TOKENIZED_CHARACTERS = 65_536
_TOKENIZED_TEXTS = 1_024
# Token vectors gathered at a time: 1 MB, whatever the length of the text.
_GATHERED_TOKENS = 1_024


class LocalEmbedder:
    """Embeds text as the mean of its tokens' vectors, by WordLlama's 256-dimensional model.

    A sentence takes 17 µs, 500 texts of 200 characters 21 ms and one text of 64 KiB 18 ms (2 cores), so looking a
    vector up in the database would cost more than computing it. The model loads in 0.2 s and takes 60 MB.

    Safe to use from many threads: nothing changes after construction, and the tokenizer works without the GIL.
    """

    def __init__(self) -> None:
        model = _load_model()
        self._tokenizer = model.tokenizer
        # WordLlama pads every text of a batch to the longest one: 64 texts with one of 64 KiB among them would gather
        # gigabytes. Without padding, texts are pooled one by one, and a batch equals its texts embedded singly.
        self._tokenizer.no_padding()
        # It takes the whole of a text for a word, and would keep 10,000 short ones with their tokens: 65 MB that save
        # nothing, since texts differ (huggingface/tokenizers#1539).
        self._tokenizer.model._resize_cache(0)  # noqa: SLF001 - there is no other way (huggingface/tokenizers#1675)
        self._token_vectors: NDArray[np.float32] = model.embedding

    @property
    def model(self) -> str:
        """The model's name."""
        return MODEL

    @property
    def dimensions(self) -> int:
        """The length of the vectors."""
        return DIMENSIONS

    @property
    def cacheable(self) -> bool:
        """False: computing is cheaper than a look-up."""
        return False

    def embed(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float,
        cancellation: Cancellation | None = None,  # noqa: ARG002 - done before anybody gives up
    ) -> NDArray[np.float32]:
        """Returns the embeddings of `texts`, in their order, shape (len(texts), 256), not normalized.

        Raises:
            TextNotEmbeddable: A text is blank.
            EmbedderUnavailable: The texts take longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        refuse_blank(texts)
        vectors = np.empty((len(texts), DIMENSIONS), np.float32)
        sizes = [len(text) for text in texts]
        for batch in batches(sizes, max_items=_TOKENIZED_TEXTS, max_size=_TOKENIZED_CHARACTERS):
            # Of the tokenizer's methods only the batch ones release the GIL: `encode` stopped every other thread for
            # 29 ms over one text of 64 KiB.
            encodings = self._tokenizer.encode_batch_fast(list(texts[batch]), add_special_tokens=False)
            for row, encoding in enumerate(encodings, start=batch.start):
                vectors[row] = self._mean_of_tokens(encoding.ids)
            if time.monotonic() > deadline:
                raise EmbedderUnavailable(
                    f"embedding {len(texts)} texts took longer than {timeout_s:g} s", retry_after_s=1.0
                )
        return vectors

    def close(self) -> None:
        """Does nothing: the model is only memory."""

    def _mean_of_tokens(self, ids: list[int]) -> NDArray[np.float32]:
        # Never empty: the tokenizer falls back to bytes, so each text that is not blank has a token.
        total = np.zeros(DIMENSIONS, np.float32)
        for start in range(0, len(ids), _GATHERED_TOKENS):
            # Ids beyond the vocabulary count as its last token, as in WordLlama.
            gathered = self._token_vectors.take(ids[start : start + _GATHERED_TOKENS], axis=0, mode="clip")
            total += gathered.sum(axis=0)
        return total / np.float32(len(ids))


def _load_model() -> Any:
    # Importing wordllama calls logging.basicConfig, which does nothing where the root logger has a handler already.
    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)
    try:
        import wordllama  # noqa: PLC0415 - guarded, and only this embedder needs it
    finally:
        root.removeHandler(placeholder)
    # The wheel carries weights and tokenizer, in the two folders where wordllama expects them below a cache folder.
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True, dim=DIMENSIONS)
