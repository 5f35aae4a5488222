"""Evaluate the deep meta-classifier on a zoo: python scripts/evaluate_meta_classifier.py ZOO"""

from nws_dataset.experiments.recipes import main

if __name__ == "__main__":
    main()
