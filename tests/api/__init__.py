"""Tests of the contract: the service as a process of its own, asked through the generated stubs over a socket."""
