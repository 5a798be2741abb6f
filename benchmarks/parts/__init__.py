"""What is measured, one row of the table of targets each. `PARTS` says in which order."""
