"""Running the Python of strangers: one process in namespaces of its own for each source.

| module       | what                                                                      |
| ------------ | ------------------------------------------------------------------------- |
| `running.py` | the caller's side: open_cage(), run_python(), why_not()                   |
| `keeping.py` | Cages: a few of them kept open, one for each source                       |
| `inside.py`  | the program that builds the cage around itself and grades; stands alone   |
| `filter.py`  | which system calls a grader may make; stands alone                        |
"""

from shared.grading.cage.keeping import Cages
from shared.grading.cage.running import Limits, OpenCage, Outcome, open_cage, run_python, why_not

__all__ = ["Cages", "Limits", "OpenCage", "Outcome", "open_cage", "run_python", "why_not"]
