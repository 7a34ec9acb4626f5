"""Training, side by side with other programs: `python -m bench.training`. What each file does:

__main__.py     the command: what is measured, in which order, and the table
rows.py         the data sets, made from a seed
work.py         what a side is told and what it answers; standard library only
measure.py      sides in processes of their own, round after round
report.py       medians, ratios and aims
sides/          one program each
growth.py       ten times the rows, four times the context
start.py        from the start of the process to the first step
small_jobs.py   four small jobs
learning.py     whether a run on real data learns, and on shuffled labels does not
rivals.sh       installs the programs that need an environment of their own
"""
