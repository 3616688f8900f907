"""`python -m latent_cot.cli`."""

import sys

from latent_cot.cli import main

sys.exit(main())
