import sys

from benchmarks.rig.cli import main

sys.exit(main())
