"""Measure how fast a zoo is read, from a folder and from the tests' loopback Hub.

python scripts/bench_reading.py [--quick] [--json FILE]
"""

import os

from testing.loopback_hub import LoopbackHub

if __name__ == "__main__":
    hub = LoopbackHub()
    os.environ.update(hub.environment())  # before huggingface_hub is imported, which reads it
    from builder.benchmark.reading import main

    with hub:
        main(obj=hub)
