"""Harms the running service and what it stands on, and counts what its callers lost: `python -m faults --help`.

What there is:

    __main__            the command line: runs the scenarios and records what they found
    catalog             the scenarios by name
    scenario            what a scenario is given, and what it hands back
    client              one caller in a closed loop, who repeats what it was refused
    journal             what a caller was told
    workload            callers in processes of their own
    audit               compares what callers were told with what the database holds
    recovery            how long after a cause calls were still refused
    service             the service as a process that can be harmed
    sessions            its connections as PostgreSQL sees them
    postgres            the embedded PostgreSQL as processes that can be harmed
    trial               a workload on a service, what befell them, and the findings
    silence             calls whose request never comes
    stepped_clock       a clock for single processes that can be set
    small_disk          a file system that can be filled
    record              the file of results
    page                writes docs/reliability.md
    scenarios/          the faults, one module for each thing that is harmed

What it shares with the benchmark is in harness/.
"""
