"""The faults, one module for each thing that is harmed."""
