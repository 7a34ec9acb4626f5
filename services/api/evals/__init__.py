"""Evals: rows that are answered, graded and counted.

definitions.py keeps evals and creation.py takes runs in, with the rows that sources.py finds; runner.py shares runs out
among the api processes, run.py brings one to its end: it reads rows.py, has working.py ask questions.py, grade, and
keep what came of it. comparison.py says which of two runs is better.
"""
