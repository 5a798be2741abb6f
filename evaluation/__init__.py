"""Measures how well the running service finds what is asked for: `python -m evaluation --help`.

What there is:

    __main__        the command line: runs the parts and draws what they found
    parts           starts a service for each part, or says why it is skipped
    sizes           how much the part about latency measures
    judged          documents, questions and judgments
    cranfield       reads the Cranfield collection with its judgments
    conversations   reads the project's own set, which is in data/
    variants        the ways of searching that are compared
    asking          stores a set and asks its questions through the stubs
    metrics         the score of one ranking
    scores          the scores of many, in halves, by category and compared
    tuning          chooses weights on one half of the questions
    quality, speed  what is measured
    targets         what is to be reached
    plots, page     what a run leaves for people; page writes docs/quality.md

What it shares with the benchmark is in harness/.
"""
