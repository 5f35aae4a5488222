"""The two baselines' experiments on any zoo.

`scripts/evaluate_meta_classifier.py` and `scripts/evaluate_predictors.py` run them.
"""
