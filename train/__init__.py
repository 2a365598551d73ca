"""Token dataset -> weights: trains Argonne models under pipeline parallelism or FSDP."""
