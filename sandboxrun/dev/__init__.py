"""Developing a worker: a hash for a folder, a worker that is started again on save, what it was refused, a folder to begin with."""
