"""The contract between `preprocess` and `train`: the dataset format, the cursor, durable storage, errors."""
