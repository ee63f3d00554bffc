"""What a study trains and measures on: from raw files or the embedded universe to batches of tokens."""
