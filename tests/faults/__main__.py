"""Run it: `python -m tests.faults --faults 200 --seed 1`.

Ends with status 1 when anything is lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from pathlib import Path

from tests.faults.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many plugs to pull")
    parser.add_argument("--clients", type=int, default=4, help="how many clients work meanwhile")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="which faults and requests")
    parser.add_argument("--logs", type=Path, help="folder for the logs of a run that went wrong")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell has had the first ignored
        signal.signal(number, signal.default_int_handler)
    again = f"--faults {given.faults} --clients {given.clients} --seed {given.seed}"
    print(f"seed {given.seed}: python -m tests.faults {again}")
    outcome = run(given.faults, seed=given.seed, n_clients=given.clients, say=_say, kept_logs=given.logs)
    print(outcome.summary())
    return 1 if outcome.wrong else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
