"""Grading: from an answer and its row to a number.

| module          | what                                                              |
| --------------- | ----------------------------------------------------------------- |
| `run.py`        | any grader, whatever its kind, and what comes of it               |
| `checking.py`   | whether a grader is sound, before anything is graded              |
| `fitting.py`    | whether the rows of a file have what a grader's templates name    |
| `samples.py`    | an answer as templates see it                                     |
| `templates.py`  | `{{ item.… }}` and `{{ sample.… }}`                               |
| `formula.py`    | the formula of a multi grader                                     |
| `similarity.py` | fuzzy_match, bleu, gleu, meteor, rouge                            |
| `judging.py`    | what is asked of judges, and how their answers are read           |
| `means.py`      | what graders may use: judges, a cage                              |
| `parts.py`      | the graders that a multi grader is made of                        |
| `hacking.py`    | signs that a model pleases its grader instead of answering well   |
| `cage/`         | where the Python of strangers runs                                |
"""
