"""Pulling plugs on a real stack while clients use it: `make faults`, or `python -m tests.faults --help`.

`plan` draws the faults from a seed, `plugs` pulls them, `site` is the stack and what it stands on (a small disk, a
clock that can be moved), `clients` use it (`calls` are their requests; `batch_client`, `parts_client`) and write into
the `ledger` what was acknowledged, and `verdict` (`batch_verdict`, `asking`) compares at the end.
"""
