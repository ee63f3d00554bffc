"""Checkpoints in the layout of Hugging Face: read into sharded arrays, and written for others to open."""
