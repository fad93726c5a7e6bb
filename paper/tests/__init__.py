"""The tests of `paper`: `make test-paper`."""
