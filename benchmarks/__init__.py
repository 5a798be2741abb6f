"""Measures the service against plain psycopg on the same machine, in the same run: `python -m benchmarks --help`.

What runs, and what it may touch:

    __main__          the command line: runs the parts and writes up what they found
    scale             how much of everything a quick, a full and a tiny run measure
    clustered         synthetic embeddings: clustered, of low rank, with a decaying spectrum
    real_text         real sentences and questions, embedded by the local model
    collection        the rows of a table: who owns them, their vectors and attributes, the questions held out
    loading           stores a collection by COPY BINARY
    tables            the tables that parts share
    growing_table     a table that grows while its users stay as they are
    ann_index         builds the indexes of large users
    question          one search as a caller asks it
    floor             asks PostgreSQL directly, in process: what the service is measured against
    client            asks the service through its stubs
    callers           processes and threads that ask, and the clock they keep
    process_group     processes that work on orders
    load              processes that put load on the service: closed loops, or a rate that waits for nobody
    stopwatch         times something done over and over in this process
    recall_truth      the right answers, by brute force outside the database
    comparison        alternating rounds of floor and service, and their ratios
    progress          says how far something is
    report, plots     what a run leaves behind for people
    page              writes the results of a full run into docs/performance.md
    part              what a part is given, and the questions it draws
    parts/            what is measured, one row of the table of targets each

What is not the benchmark's alone is in harness/: the PostgreSQL and the service of a run, how parts are run and their
results kept.
"""
