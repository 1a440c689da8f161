# SPDX-License-Identifier: Apache-2.0
"""`python -m kt_demo_model [NAME]`: build a checkpoint (or all), print its directory on stdout."""

import argparse
import sys

from kt_demo_model.builders import BUILDERS


def main(argv: list[str] | None = None) -> int:
    """Build what the command line names.

    Args:
        argv: Arguments without the program name; None means those of this process.

    Returns:
        The exit status: 0, or 1 after printing why a build failed.
    """
    parser = argparse.ArgumentParser(prog="python -m kt_demo_model", description=__doc__)
    parser.add_argument("name", nargs="?", default="smolmoe-exact", choices=[*BUILDERS, "all"])
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    options = parser.parse_args(argv)
    names = list(BUILDERS) if options.name == "all" else [options.name]
    for name in names:
        try:
            print(BUILDERS[name](progress=not options.quiet))
        except (OSError, RuntimeError, ValueError) as error:
            print(f"kt_demo_model: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
