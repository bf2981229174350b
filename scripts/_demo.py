"""What ./scripts/demo runs."""

import signal
import sys

# Until there is something to end in order, Ctrl-C just ends the program, without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from _serve import main  # noqa: E402

sys.exit(main())
