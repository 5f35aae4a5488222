"""Evaluate the accuracy predictors on a zoo: python scripts/evaluate_predictors.py ZOO"""

from nws_dataset.experiments.accuracies import main

if __name__ == "__main__":
    main()
