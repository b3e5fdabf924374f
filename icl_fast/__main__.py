"""`python -m icl_fast`, and `icl-fast`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit (see `icl_fast.cli.main`); Ctrl-C is expected from here on."""
    try:
        from icl_fast.cli.environment import own_process

        own_process()
        from icl_fast.cli.main import main as run

        run()
    except KeyboardInterrupt as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
