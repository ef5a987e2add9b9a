"""The packages of a script: how a lock is made, and a verified, read-only folder from it. See environment.py and resolve.py."""
