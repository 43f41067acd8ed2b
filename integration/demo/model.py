"""A tiny random Llama with a local byte-level tokenizer: no download, same weights on every machine."""

from __future__ import annotations

import json
from pathlib import Path

VOCABULARY = 320  # 3 special tokens, 256 bytes, the rest unused
FIRST_BYTE_TOKEN = 3
LAST_BYTE_TOKEN = 258
MAX_LENGTH = 2048  # tokens, prompt and answer together

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": MAX_LENGTH,
}
# Wide enough that the greedy answer depends on the whole prompt, so that a wrong block would be seen in it.
WEIGHT_SPREAD = 0.07
SEED = 0


def ensure_model(folder: Path) -> bool:
    """Write the model into `folder` unless this very model is there; True when it was written."""
    stamp = folder / "made_from.json"
    wanted = json.dumps({"shape": SHAPE, "spread": WEIGHT_SPREAD, "seed": SEED}, sort_keys=True)
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    _write_tokenizer(folder)
    _write_weights(folder)
    stamp.write_text(wanted)
    return True


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", "<pad>", *alphabet]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    ).save_pretrained(folder)


def _write_weights(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(**SHAPE, bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, WEIGHT_SPREAD)
    model.save_pretrained(folder)
