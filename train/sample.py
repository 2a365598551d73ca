"""Text from a trained model: one process, a key/value cache, and an end at the end-of-document id.

Legend: B sequences, T positions, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.config import structure
from shared.directories import exists
from shared.errors import ConfigError, FormatError
from shared.format import TOKENIZER_NAME
from shared.storage import read_sealed, sha256_file
from train.attention import KeyValueCache
from train.building import make_model
from train.checkpoint_directory import MANIFEST_NAME, newest
from train.config import RunConfig
from train.model import ArgonneModel
from train.run_files import CHECKPOINTS_NAME
from train.strategy import evaluating
from train.tensors import load_tensors


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    """0: always the most likely token."""
    top_k: int | None = None
    """Choose among so many of the most likely tokens. None: among all."""
    top_p: float | None = None
    """Choose among the most likely tokens that together have this probability. None: among all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1:
            raise ConfigError(
                f"temperature {self.temperature} and max-new-tokens {self.max_new_tokens} are found: "
                "a temperature of 0 or more and at least 1 token are wanted"
            )
        if (self.top_k is not None and self.top_k < 1) or (self.top_p is not None and not 0 < self.top_p <= 1):
            raise ConfigError(
                f"top-k {self.top_k} and top-p {self.top_p} are found: at least 1, and above 0 up to 1, are wanted"
            )


def generate(model: ArgonneModel, prompt_BT: Tensor, sampling: Sampling, num_ids: int | None = None) -> Tensor:
    """(B, T + new) ids: the prompts, what follows them up to an end-of-document id, then padding.

    The model is left in the mode it was in. An empty prompt starts from bos_token_id. Only the first `num_ids` ids of
    the vocabulary are chosen from: those after them fill it up and mean nothing.

    Raises: ConfigError if prompt and continuation are longer than the model's positions.
    """
    config = model.config
    if prompt_BT.shape[1] == 0:
        prompt_BT = torch.full((len(prompt_BT), 1), config.bos_token_id or 0, device=prompt_BT.device)
    length = prompt_BT.shape[1] + sampling.max_new_tokens
    if length > config.max_position_embeddings:
        raise ConfigError(
            f"a prompt of {prompt_BT.shape[1]} tokens and {sampling.max_new_tokens} new ones do not fit "
            f"max_position_embeddings {config.max_position_embeddings}: shorten one of them"
        )
    generator = torch.Generator(prompt_BT.device).manual_seed(sampling.seed)
    caches = {name: KeyValueCache() for name in model.blocks}
    ids_BT, new_BT = prompt_BT, prompt_BT
    ended_B = torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
    with evaluating(model):
        while ids_BT.shape[1] < length and not ended_B.all():
            logits_BV = model(new_BT, start=ids_BT.shape[1] - new_BT.shape[1], caches=caches)[:, -1, :num_ids].float()
            next_B = choose(logits_BV, sampling, generator)
            next_B = torch.where(ended_B, torch.full_like(next_B, config.pad_token_id or 0), next_B)
            ended_B |= next_B == config.eos_token_id
            new_BT = next_B[:, None]
            ids_BT = torch.cat((ids_BT, new_BT), dim=1)
    return ids_BT


def choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """(B,) ids drawn from the logits.

    Source of top-p: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv 1904.09751.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        kth = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
    if sampling.top_p is not None:
        ordered, places = logits_BV.softmax(-1).sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first token to reach top_p stays
        logits_BV = logits_BV.masked_fill(beyond.gather(-1, places.argsort(-1)), -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]


def load_model(run: Path) -> tuple[ArgonneModel, int]:
    """The model of a run's newest valid checkpoint, and its step.

    Raises: FormatError if there is no run or no valid checkpoint.
    """
    path, problems = newest(run / CHECKPOINTS_NAME)
    if path is None:
        raise FormatError(
            "; ".join(problems.values()) or f"{run} has no checkpoint: name the directory of a run that saved one"
        )
    return load_checkpoint(run, path)


def load_checkpoint(run: Path, path: Path) -> tuple[ArgonneModel, int]:
    """The model of a valid checkpoint of a run, and its step.

    Raises: FormatError if the run's tokenizer is not the one that it was trained with.
    """
    manifest = read_sealed(path / MANIFEST_NAME)
    config = structure(manifest["recipe"], RunConfig, str(path)).model
    model = make_model(config)
    load_tensors(path, {f"model.{name}": p.detach() for name, p in model.named_parameters()}, manifest)
    if not exists(run / TOKENIZER_NAME):
        raise FormatError(
            f"{run} has no {TOKENIZER_NAME}: a model that was imported without one has it after its start"
        )
    if sha256_file(run / TOKENIZER_NAME) != manifest["tokenizer"]:
        raise FormatError(f"{run / TOKENIZER_NAME} is not the tokenizer of {path}: put that file back")
    return model, manifest["step"]


def sample(run: Path, prompt: str, sampling: Sampling) -> tuple[str, int]:
    """The prompt with its continuation, and the step of the checkpoint that gave it."""
    from tokenizers import Tokenizer

    model, step = load_model(run)
    tokenizer = Tokenizer.from_file(str(run / TOKENIZER_NAME))
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    prompt_BT = torch.tensor([prompt_ids], dtype=torch.long)
    ids = generate(model, prompt_BT, sampling, tokenizer.get_vocab_size())[0].tolist()
    return tokenizer.decode(ids, skip_special_tokens=True), step
