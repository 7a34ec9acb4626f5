"""python -m bench.load [--only SCENE …] [--seconds 10] [--rounds 3] [--jobs 10000] [--minutes 30]"""

from __future__ import annotations

import argparse

from bench.api.scene import print_machine
from bench.load.jobs import queued, reads_and_creates
from bench.load.soaking import soak
from bench.load.streams import events, slow

SCENES = ("jobs", "queued", "events", "slow", "soak")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SCENES, default=SCENES)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and the bare handler, in turns")
    parser.add_argument("--jobs", type=int, default=10_000, help="that wait in the scene `queued`")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the scene `soak`")
    given = parser.parse_args()
    print_machine()
    scenes = {
        "jobs": lambda: reads_and_creates(given.seconds, given.rounds),
        "queued": lambda: queued(given.jobs, given.seconds),
        "events": lambda: events(given.seconds),
        "slow": lambda: slow(given.seconds),
        "soak": lambda: soak(given.minutes),
    }
    for name in given.only:
        print(f"\n## {name}")
        scenes[name]()


if __name__ == "__main__":
    main()
