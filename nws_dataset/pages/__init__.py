"""What the experiments' results look like: tables, plots and one HTML page."""
