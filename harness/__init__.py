"""What benchmark, evaluation and fault scenarios share; none of them imports another.

What they run on:

    instance             the embedded PostgreSQL of the run and its databases
    service_process      the service as a process of its own
    channel              connections to it
    cranfield            real sentences and questions

How they run:

    runner               the parts of a run, one after the other
    attempt              one part: within its time, and what came of it
    time_limit           ends what takes too long
    machine              facts about the machine

What they leave:

    targets              what is to be reached, and whether it was
    outcome              what is known about a scale, to which parts are added one by one
    results_file         a file of results
    report               what pages and terminals say of results
    panels               how plots of them look
    generated_sections   keeps what stands between markers on a page
"""
