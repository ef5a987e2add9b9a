"""Tables of PostgreSQL that are kept up to date from streams and hashes: what sync.json says, and the SQL that follows.

The operator's commands and the plugin postgres-sync share it.
"""
