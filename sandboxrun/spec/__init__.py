"""spec.json: the interface of a worker, its tests, and what others' tests are answered for it.

model.py reads the file, match.py compares JSON, state.py compares keys of Redis. Nothing here runs a worker.
"""
