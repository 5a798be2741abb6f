"""Tests of the faults: those that are brief enough for every run, and what judges and reports them."""
