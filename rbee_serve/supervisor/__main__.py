"""`python -m rbee_serve.supervisor`."""

import sys

from rbee_serve.supervisor.cli import main

if __name__ == "__main__":
    sys.exit(main())
