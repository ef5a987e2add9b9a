"""Packages of a script: from a lock to a verified, read-only folder on `sys.path`. The entry point is environment.py."""
