"""`python -m validation.cli`."""

import sys

from validation.cli.main import main

sys.exit(main())
