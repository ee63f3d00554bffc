"""What do the measured runs say, with how much certainty?

Pure functions on the long table `measures.parquet`: `table` loads it, `rebound` and `compression` compute
quantities per seed, `statistics` turns seeds into intervals, `claims`, a module for each family,
tests the paper's statements on this study alone.
"""
