"""Moving a database to another embedding model, as `memory-service reembed` does it; db/reembedding.py stores it.

patient_embedding.py   embeds texts, waiting for a provider that is away
backfill.py            rounds over the memories that the new model has not embedded yet
progress.py            how far a round is, on a terminal and elsewhere
move.py                the whole of it: back-fill, indexes, catching up, the switch
report.py              what is told about it before, meanwhile and afterwards
"""
