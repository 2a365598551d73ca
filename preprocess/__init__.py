"""Text -> token dataset: parquet in, memory-mapped shards of token ids out. Never imports torch or `train`."""
