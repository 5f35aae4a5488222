"""Presentation of the experiments' results: tables, plots and one HTML page."""
