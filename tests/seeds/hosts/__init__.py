"""What the seeds stand on. `lab`, of the other system tests, is found from here on."""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PACKAGES = os.path.join(ROOT, "build", "packages")
sys.path.insert(0, os.path.join(ROOT, "tests", "netns"))
