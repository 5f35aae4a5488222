"""Verify a zoo: `scripts/verify.py ZOO [--reevaluate [K]] [--retrain [K]]`."""

from builder.verify import main

if __name__ == "__main__":
    main()
