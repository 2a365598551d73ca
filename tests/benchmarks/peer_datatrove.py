"""Parquet -> datatrove's token files, one task; runs in an environment that has datatrove: DATA TOKENIZER OUT."""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer

if __name__ == "__main__":
    data, tokenizer, out = sys.argv[1:]
    writer = DocumentTokenizer(
        out, tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>", shuffle_documents=False
    )
    LocalPipelineExecutor([ParquetReader(data), writer], tasks=1, workers=1, logging_dir=f"{out}/logs").run()
