"""The paper run again on top of the library, which knows nothing of it: `python -m paper`."""
