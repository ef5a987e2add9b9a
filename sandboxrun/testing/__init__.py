"""Runs the tests of a spec.json: the real worker in the real sandbox, on a Redis of its own.

subject.py is the worker, keyspace.py the keys in Redis, mocks.py answers for the services that it calls, runner.py runs one
test after another, report.py prints. recording.py makes tests of requests that are typed in
`sandboxrun dev`.
"""
