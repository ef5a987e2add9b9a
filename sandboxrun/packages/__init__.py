"""The packages of a script: its lock, and the environment that is made from it."""
