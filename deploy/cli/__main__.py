"""The `fathom` command, also as `python -m deploy.cli`: prepares the process, then runs `main.py`."""

import logging
import os
import sys

from deploy.scheduling.packages import package_importer


def prepare_process() -> None:
    """Makes this process, and those that it starts, import the project's own packages, whoever starts it and where.

    Raises ImportError.
    """
    if os.path.expanduser("~") == "~":  # a user without a home, as in a container
        os.environ["HOME"] = "/"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home that cannot be written
    # Under `uv run`, Ray would upload the working directory and start each worker by another `uv run` there.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # read when Ray is imported
    package_importer()()


def main() -> None:
    try:
        prepare_process()
    except ImportError as error:
        print(f"fathom: {error}", file=sys.stderr)
        sys.exit(2)  # as for every mistake of the user
    from deploy.cli.main import run_command

    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
