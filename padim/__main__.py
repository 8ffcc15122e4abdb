"""`python -m padim train` is `padim-train`."""

import sys

from padim.cli.main import main

sys.exit(main())
