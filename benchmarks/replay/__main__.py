import sys

from benchmarks.replay.cli import main

sys.exit(main())
