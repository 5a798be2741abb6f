"""Tests of what needs neither a database nor a server."""
