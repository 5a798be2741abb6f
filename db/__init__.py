"""Speaks SQL: everything the service keeps in PostgreSQL, and nothing of gRPC.

pool → connection → cancellation      who runs a statement, for how long, and how it is stopped
insert, fetch, update, delete, search, recent, stats      what is run, one file a question
embedded, migrate, schema      where it runs and what shape it has
"""
