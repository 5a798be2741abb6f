"""Moving a database to another embedding model, as `memory-service reembed` does it; db/reembedding.py stores it.

actions.py             what the command line can ask for, each in the state of the database that it needs
beginning.py           which model a move leads to, and whether it may begin
patient_embedding.py   embeds texts, waiting for a provider that is away
backfill.py            rounds over the memories that the new model has not embedded yet
progress.py            how far a round is, on a terminal and elsewhere
move.py                the whole of it: back-fill, indexes, catching up, the switch
report.py              what is told about it before, meanwhile and afterwards
"""
