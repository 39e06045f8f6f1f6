"""Records golden logs; the package's docstring says when that is right."""

from __future__ import annotations

import argparse

from tests.golden import names, write_log, write_reading
from tests.golden.stories import STORIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--read", nargs="+", default=[], metavar="NAME", help="read these logs anew")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", choices=list(STORIES), help="make them anew")
    given = parser.parse_args()
    known = set(names())
    anew = given.again or ([] if given.read else [name for name in STORIES if name not in known])
    for name in anew:
        write_log(name, STORIES[name]())
    for name in [*anew, *given.read]:
        write_reading(name)
        print(name)


main()
