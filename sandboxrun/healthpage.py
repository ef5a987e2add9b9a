"""The layout of the health page: 4096 bytes that a worker shares with its supervisor. Pure.

worker/health.py writes the page, sandbox/supervisor/health.py reads it. Every number is a word of 8 bytes in native order: a
whole number without a sign, or a double where that is said.
"""

from __future__ import annotations

BYTES = 4096

READY = 0  # 1 once the first read is done
TICK = 1  # double: when the loop turned last, in seconds of CLOCK_MONOTONIC
HANDLING_SINCE = 2  # double: when the oldest request in hand was begun, in seconds of CLOCK_MONOTONIC; 0 if none is
HANDLED = 3  # requests answered
CLIENT_ID = 4  # of the connection to Redis that waits for requests
HANDLER_SUM = 5  # double: seconds
WAIT_SUM = 6  # double: seconds
# Of a histogram, in seconds: each count is of the values up to its bound and above the one before; the last has no bound.
BOUNDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BUCKETS = len(BOUNDS) + 1
HANDLER = 8  # seconds from the begin of a request to its reply
WAIT = 32  # seconds from the time of an entry's ID to the begin of its handler
CODES = 64  # pairs of a reply's code and its count, without 200; a code of 0 ends them
CODES_MOST = 16
