"""``python -m freeim``: a terminal and a sender for the command line."""

from __future__ import annotations

import sys

from freeim.tool import main

sys.exit(main())
