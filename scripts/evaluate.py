"""Everything that can be asked of a zoo, by every method: see `nws-evaluate --help`."""

from nws_dataset.experiments.evaluate import main

if __name__ == "__main__":
    main()
