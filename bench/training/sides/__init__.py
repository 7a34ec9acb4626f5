"""Programs that train: `python -m bench.training.sides.NAME WORK.json ANSWER.json` does one run and ends.

They run in different environments, so each imports the standard library, bench.training.work and what it measures.
"""
