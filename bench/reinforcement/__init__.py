"""Reinforcement, side by side with TRL: `python -m bench.reinforcement`. What each file does:

__main__.py     the command: both sides in turns, medians, curves of rewards
task.py         the questions, their reward, what a side is told and what it answers
ours.py         a job on a stack of its own
trl.py          TRL's GRPOTrainer in a process of its own
"""
