"""Text -> token dataset: files in, memory-mapped shards of token ids out. Never imports torch or `train`."""
