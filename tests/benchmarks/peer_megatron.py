"""JSONL -> .bin and .idx by the steps of Megatron-LM's gigatoken path: JSONL TOKENIZER OUT builder|plain.

Its tools are in no package, so these are lines of our own that do what `tools/preprocess_data_fast.py` does: encode a
whole file at once, append the end of document to every document, add them to an indexed dataset. `builder` uses the
one of megatron-core, with its imports; `plain` writes the same bytes in the fewest lines and imports neither torch nor
Megatron, so it is faster than the original. Neither checks anything.

Source: https://github.com/NVIDIA/Megatron-LM/blob/main/tools/preprocess_data_fast.py
"""

import struct
import sys
from pathlib import Path

import awkward as ak
import gigatoken
import numpy as np

END_OF_DOCUMENT = 50256
UINT16 = 8  # its code for the type of the ids


def encode(jsonl: str, tokenizer_path: str):
    """All documents of the file, each with its end."""
    tokenizer = gigatoken.Tokenizer.from_json(Path(tokenizer_path).read_bytes())
    documents = tokenizer.encode_files(gigatoken.JsonlFileSource([jsonl]), parallel=False)
    ends = ak.singletons(ak.Array(np.full(len(documents), END_OF_DOCUMENT, np.uint32)))
    return ak.concatenate([documents, ends], axis=1)


def write_by_builder(documents, prefix: str) -> None:
    """Add the documents one by one, as Megatron does."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(END_OF_DOCUMENT + 1))
    for document in documents:
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")


def write_plain(documents, prefix: str) -> None:
    """The same files without a Python object per document."""
    ak.to_numpy(ak.flatten(documents)).astype("<u2").tofile(f"{prefix}.bin")
    lengths = ak.to_numpy(ak.num(documents)).astype("<i4")
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype="<i8") * 2])
    with open(f"{prefix}.idx", "wb") as index:
        index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, UINT16, len(lengths), len(lengths) + 1))
        for array in (lengths, pointers, np.arange(len(lengths) + 1, dtype="<i8")):
            index.write(array.tobytes())


if __name__ == "__main__":
    jsonl, tokenizer_path, out, how = sys.argv[1:]
    Path(out).mkdir()
    {"builder": write_by_builder, "plain": write_plain}[how](encode(jsonl, tokenizer_path), f"{out}/text_document")
