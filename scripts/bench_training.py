"""Measure how fast training is.

python scripts/bench_training.py [--quick] [--device cpu|cuda] [--images DIR] [--json FILE]
"""

from builder.benchmark.training import main

if __name__ == "__main__":
    main()
